/* An application in C: draws a picture of class argv[2] of the bundle argv[1] and prints its tokens. */
#include <var_edge.h>

#include <stdio.h>
#include <stdlib.h>

int main(int count, char** arguments) {
    if (count != 3) return 2;
    var_edge_model* model = NULL;
    var_edge_info info;
    info.struct_size = sizeof info;
    var_edge_settings settings;
    var_edge_default_settings(&settings);
    settings.top_k = 1;
    const int32_t label = atoi(arguments[2]);
    uint8_t* image = NULL;
    int32_t* tokens = NULL;
    int failed = var_edge_create(arguments[1], NULL, &model) || var_edge_query(model, &info);
    if (!failed) {
        image = malloc((size_t)info.image_size * (size_t)info.image_size * 3);
        tokens = malloc((size_t)info.tokens * sizeof *tokens);
        failed = !image || !tokens || var_edge_generate(model, &label, 1, &settings, image, tokens);
    }
    if (failed) fprintf(stderr, "%s\n", var_edge_last_error());
    else
        for (int32_t i = 0; i < info.tokens; ++i) printf("%d ", tokens[i]);
    free(tokens);
    free(image);
    var_edge_free(model);
    return failed;
}
