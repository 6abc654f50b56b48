/* live DIR [THREADS]: creates a model, then does what each line of standard input says, "generate" or "encode". After
 * creating and after each line it prints the status and the error, so that a test can act in between. The log goes to
 * standard error. */
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

int main(int count, char** arguments) {
    char line[64];
    const int32_t label = 1;
    var_edge_options options;
    var_edge_model* model = NULL;
    var_edge_info info;
    if (count < 2) return 2;
    var_edge_default_options(&options);
    options.threads = count > 2 ? atoi(arguments[2]) : 0;
    options.log = note;
    const var_edge_status status = var_edge_create(arguments[1], &options, &model);
    say(status);
    if (status != VAR_EDGE_OK) return 0;
    info.struct_size = sizeof info;
    if (var_edge_query(model, &info) != VAR_EDGE_OK) return 1;
    uint8_t* image = calloc((size_t)info.image_size * (size_t)info.image_size, 3);
    int32_t* tokens = calloc((size_t)info.tokens, sizeof *tokens);
    if (!image || !tokens) return 3; /* not the library's failure */
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "generate\n")) say(var_edge_generate(model, &label, 1, NULL, image, tokens));
        if (!strcmp(line, "encode\n")) say(var_edge_encode(model, image, 1, tokens));
    }
    var_edge_free(model);
    free(image);
    free(tokens);
    return 0;
}
