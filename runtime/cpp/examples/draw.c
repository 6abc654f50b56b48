/* var_edge_draw DIR LABEL PICTURE.ppm [SEED]: draws a picture with the C API and writes it as PPM. */
#include <var_edge.h>

#include <stdio.h>
#include <stdlib.h>

/* Writes `rgb` (side, side, 3) to a PPM file. Returns 0 on success. */
static int write_ppm(const char* path, const uint8_t* rgb, int32_t side) {
    FILE* file = fopen(path, "wb");
    if (!file) return 1;
    const size_t size = (size_t)side * (size_t)side * 3;
    fprintf(file, "P6\n%d %d\n255\n", side, side);
    const int written = fwrite(rgb, 1, size, file) == size;
    return fclose(file) || !written;
}

static int draw(var_edge_model* model, int32_t label, uint64_t seed, const char* path) {
    var_edge_info info;
    info.struct_size = sizeof info;
    if (var_edge_query(model, &info) != VAR_EDGE_OK) return 1;
    uint8_t* image = malloc((size_t)info.image_size * (size_t)info.image_size * 3);
    if (!image) return 1;

    var_edge_settings settings;
    var_edge_default_settings(&settings);
    settings.seed = seed;
    int failed = var_edge_generate(model, &label, 1, &settings, image, NULL) != VAR_EDGE_OK;
    if (failed) {
        fprintf(stderr, "Error: %s\n", var_edge_last_error());
    } else if (write_ppm(path, image, info.image_size)) {
        fprintf(stderr, "Error: %s: cannot be written\n", path);
        failed = 1;
    }
    free(image);
    return failed;
}

int main(int count, char** arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: %s DIR LABEL PICTURE.ppm [SEED]\n", arguments[0]);
        return 2;
    }
    var_edge_model* model = NULL;
    if (var_edge_create(arguments[1], NULL, &model) != VAR_EDGE_OK) {
        fprintf(stderr, "Error: %s\n", var_edge_last_error());
        return 1;
    }
    const uint64_t seed = count > 4 ? strtoull(arguments[4], NULL, 10) : 0;
    const int failed = draw(model, (int32_t)atoi(arguments[2]), seed, arguments[3]);
    var_edge_free(model);
    return failed;
}
