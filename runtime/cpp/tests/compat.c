/* compat DIR: a program of 0.1.0, whose structs are shorter than today's, draws label 1 and prints the tokens. Returns
 * 0 if nothing was written behind its structs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <var_edge.h>

#ifdef VAR_EDGE_TOP_K_DEFAULT
#error "this is not the old header"
#endif

int main(int count, char** arguments) {
    if (count < 2) return 2;
    /* What a newer library would write behind a shorter struct. */
    struct {
        var_edge_options value;
        unsigned char fence[64];
    } options;
    struct {
        var_edge_settings value;
        unsigned char fence[64];
    } settings;
    struct {
        var_edge_info value;
        unsigned char fence[64];
    } info;
    memset(&options, 0xA5, sizeof options);
    memset(&settings, 0xA5, sizeof settings);
    memset(&info, 0xA5, sizeof info);
    var_edge_default_options(&options.value);
    var_edge_default_settings(&settings.value);
    info.value.struct_size = sizeof info.value;

    var_edge_model* model = NULL;
    var_edge_status status = var_edge_create(arguments[1], &options.value, &model);
    if (status == VAR_EDGE_OK) status = var_edge_query(model, &info.value);
    if (status != VAR_EDGE_OK) {
        printf("%s\n", var_edge_last_error());
        return 1;
    }
    uint8_t* image = malloc((size_t)info.value.image_size * (size_t)info.value.image_size * 3);
    int32_t* tokens = malloc((size_t)info.value.tokens * sizeof *tokens);
    const int32_t label = 1;
    status = var_edge_generate(model, &label, 1, &settings.value, image, tokens);
    if (status != VAR_EDGE_OK) printf("%s\n", var_edge_last_error());
    for (int32_t i = 0; status == VAR_EDGE_OK && i < info.value.tokens; ++i) printf("%d ", (int)tokens[i]);
    free(tokens);
    free(image);
    var_edge_free(model);
    for (size_t i = 0; i < sizeof info.fence; ++i) {
        if (options.fence[i] != 0xA5 || settings.fence[i] != 0xA5 || info.fence[i] != 0xA5) status = VAR_EDGE_FAILED;
    }
    return status != VAR_EDGE_OK;
}
