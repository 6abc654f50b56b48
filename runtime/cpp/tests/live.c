/* live DIR [THREADS [BACKEND [KEY VALUE]…]]: creates a model, with options of the execution provider, then does what
 * each line of standard input says: "generate", "generate N" for N pictures at once, "listen" for a picture with a
 * callback after each scale, "guided M" for guidance at M scales, "smooth", "encode". After creating and after each
 * line it prints the status and the error, so that a test can act in between. The log goes to standard error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <var_edge.h>

static void say(var_edge_status status) {
    printf("%d %s\n", (int)status, var_edge_last_error());
    fflush(stdout);
}

static void note(int level, const char* message, void* user) {
    (void)user;
    fprintf(stderr, "log %d: %s\n", level, message);
}

static int go_on(var_edge_model* model, const var_edge_scale* scale, void* user) {
    (void)model, (void)scale, (void)user;
    return 0;
}

int main(int count, char** arguments) {
    char line[64];
    int32_t labels[64];
    var_edge_options options;
    var_edge_settings smooth, listen, guided;
    var_edge_model* model = NULL;
    var_edge_info info;
    if (count < 2) return 2;
    var_edge_default_options(&options);
    options.threads = count > 2 ? atoi(arguments[2]) : 0;
    if (count > 3) options.backend = (var_edge_backend)atoi(arguments[3]);
    if (count > 4) options.provider_options = (const char* const*)(arguments + 4); /* argv ends with NULL too */
    options.log = note;
    /* What this program needs itself must not be what is missing when memory is short: kept free for it meanwhile. */
    void* volatile kept = malloc(2 << 20);
    const var_edge_status status = var_edge_create(arguments[1], &options, &model);
    free(kept);
    say(status);
    if (status != VAR_EDGE_OK) return 0;
    info.struct_size = sizeof info;
    if (var_edge_query(model, &info) != VAR_EDGE_OK) return 1;
    const size_t most = sizeof labels / sizeof *labels;
    uint8_t* image = calloc((size_t)info.image_size * (size_t)info.image_size, 3 * most);
    int32_t* tokens = calloc((size_t)info.tokens, most * sizeof *tokens);
    if (!image || !tokens) return 3; /* not the library's failure */
    for (size_t i = 0; i < most; ++i) labels[i] = 1;
    var_edge_default_settings(&smooth);
    smooth.smooth = 1;
    var_edge_default_settings(&listen);
    listen.on_scale = go_on;
    var_edge_default_settings(&guided);
    while (fgets(line, sizeof line, stdin)) {
        int pictures = 1;
        if (!strcmp(line, "generate\n") || (sscanf(line, "generate %d", &pictures) == 1 && pictures <= (int)most)) {
            say(var_edge_generate(model, labels, pictures, NULL, image, tokens));
        }
        if (sscanf(line, "guided %d", &guided.guidance_scales) == 1) {
            say(var_edge_generate(model, labels, 1, &guided, image, tokens));
        }
        if (!strcmp(line, "smooth\n")) say(var_edge_generate(model, labels, 1, &smooth, image, tokens));
        if (!strcmp(line, "listen\n")) say(var_edge_generate(model, labels, 1, &listen, image, tokens));
        if (!strcmp(line, "encode\n")) say(var_edge_encode(model, image, 1, tokens));
    }
    var_edge_free(model);
    free(image);
    free(tokens);
    return 0;
}
