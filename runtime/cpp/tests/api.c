/* api DIR: the C API from C11, and what it says to arguments that are wrong. Prints nothing and returns 0 if all is
 * well. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <var_edge.h>

static int failures = 0;

static void expect(const char* what, var_edge_status found, var_edge_status wanted, const char* message) {
    if (found == wanted && strstr(var_edge_last_error(), message)) return;
    printf("%s: expected status %d and \"%s\", found %d and \"%s\"\n", what, (int)wanted, message, (int)found,
           var_edge_last_error());
    ++failures;
}

static int stop_at_scale_2(var_edge_model* model, const var_edge_scale* scale, void* user) {
    uint8_t* preview = user;
    if (scale->index < 2) return 0;
    if (var_edge_preview(model, preview) != VAR_EDGE_OK) ++failures;
    return 1;
}

static void note(int level, const char* message, void* user) {
    (void)level;
    *(int*)user += strstr(message, "loaded with") != NULL;
}

int main(int count, char** arguments) {
    if (count < 2) return 2;
    int loaded = 0;
    var_edge_model* model = (var_edge_model*)&loaded;
    var_edge_options options;
    var_edge_default_options(&options);
    options.log = note;
    options.log_user = &loaded;

    expect("no directory", var_edge_create(NULL, NULL, &model), VAR_EDGE_BAD_ARGUMENT, "directory: expected a pointer");
    if (model) ++failures;
    expect("no handle", var_edge_create(arguments[1], NULL, NULL), VAR_EDGE_BAD_ARGUMENT, "model: expected a pointer");
    expect("nothing there", var_edge_create("/nowhere", NULL, &model), VAR_EDGE_BAD_BUNDLE, "no manifest.json");
    options.struct_size = 3;
    expect("old options", var_edge_create(arguments[1], &options, &model), VAR_EDGE_BAD_ARGUMENT,
           "options.struct_size");
    options.struct_size = sizeof options;
    options.threads = -1;
    expect("threads", var_edge_create(arguments[1], &options, &model), VAR_EDGE_BAD_ARGUMENT,
           "threads: expected 0 (all) to 1024");
    options.threads = 2;
    options.backend = (var_edge_backend)17;
    expect("backend", var_edge_create(arguments[1], &options, &model), VAR_EDGE_BAD_ARGUMENT, "backend: expected");
    options.backend = VAR_EDGE_TENSORRT;
    const var_edge_status without = var_edge_create(arguments[1], &options, &model);
    if (without != VAR_EDGE_UNSUPPORTED && without != VAR_EDGE_BAD_BUNDLE) ++failures;
    options.backend = VAR_EDGE_ONNXRUNTIME_CUDA;
    expect("no CUDA", var_edge_create(arguments[1], &options, &model), VAR_EDGE_UNSUPPORTED, "CUDAExecutionProvider");
    options.backend = VAR_EDGE_AUTO;
    expect("create", var_edge_create(arguments[1], &options, &model), VAR_EDGE_OK, "");
    if (!model || loaded != 1) return 1;

    var_edge_info info;
    info.struct_size = 0;
    expect("old info", var_edge_query(model, &info), VAR_EDGE_BAD_ARGUMENT, "info.struct_size");
    info.struct_size = sizeof info;
    expect("query", var_edge_query(model, &info), VAR_EDGE_OK, "");
    if (strcmp(info.model, "var_demo") || !var_edge_class_name(model, 0) || var_edge_class_name(model, -1) ||
        var_edge_class_name(model, info.num_classes)) {
        ++failures;
    }

    const size_t picture = (size_t)info.image_size * (size_t)info.image_size * 3;
    uint8_t* images = malloc(2 * picture);
    uint8_t* preview = calloc(picture, 1);
    int32_t* tokens = malloc(2 * (size_t)info.tokens * sizeof *tokens);
    uint8_t* keep = calloc((size_t)info.tokens, 1);
    int32_t labels[2] = {0, 1};
    var_edge_settings settings;
    var_edge_default_settings(&settings);
    settings.top_k = 300;

    expect("generate", var_edge_generate(model, labels, 2, &settings, images, tokens), VAR_EDGE_OK, "");
    expect("no labels", var_edge_generate(model, NULL, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT, "labels");
    expect("no images", var_edge_generate(model, labels, 1, &settings, NULL, NULL), VAR_EDGE_BAD_ARGUMENT, "images");
    expect("no model", var_edge_generate(NULL, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT, "model");
    expect("none", var_edge_generate(model, labels, 0, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "labels: expected 1 to");
    expect("fewer than none", var_edge_generate(model, labels, -1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "labels: expected 1 to");
    labels[0] = info.num_classes + 1;
    expect("label", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "means no class");
    labels[0] = -1;
    expect("label", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT, "found -1");
    labels[0] = info.num_classes;
    settings.top_k = info.vocab_size + 1;
    expect("top_k", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "top_k: expected");
    settings.top_k = 300;
    settings.top_p = 1.5;
    expect("top_p", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "top_p: expected");
    settings.top_p = 0.9;
    settings.cfg = -1;
    expect("cfg", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT, "cfg: expected");
    settings.cfg = 4;
    settings.seed = UINT64_MAX;
    expect("seed", var_edge_generate(model, labels, 2, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "seed: expected");
    settings.batch = 0;
    expect("batch", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "batch: expected");
    settings.batch = 8;
    settings.images_on_device = 1;
    expect("device", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_UNSUPPORTED,
           "images_on_device");
    settings.images_on_device = 0;
    settings.keep = keep;
    expect("keep alone", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "both or neither");
    settings.kept_tokens = tokens;
    keep[0] = 1;
    tokens[0] = info.vocab_size;
    expect("kept", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_ARGUMENT,
           "kept_tokens: expected");
    tokens[0] = 0;
    expect("keep", var_edge_generate(model, labels, 1, &settings, images, tokens), VAR_EDGE_OK, "");
    settings.keep = NULL;
    settings.kept_tokens = NULL;
    expect("preview outside", var_edge_preview(model, preview), VAR_EDGE_BAD_ARGUMENT, "only within on_scale");
    settings.on_scale = stop_at_scale_2;
    settings.user = preview;
    expect("stop", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_STOPPED,
           "stopped after scale 2");
    int seen = 0;
    for (size_t i = 0; i < picture; ++i) seen |= preview[i];
    if (!seen) ++failures;
    settings.on_scale = NULL;
    expect("after a stop", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_OK, "");
    const double box[4] = {0.25, 0.25, 0.75, 0.75}, empty[4] = {0.5, 0.5, 0.5, 0.9}, outside[4] = {0, 0, 1, 1.5};
    uint8_t* mask = calloc(picture, 1);
    labels[0] = info.num_classes;
    expect("edit", var_edge_edit(model, preview, box, NULL, VAR_EDGE_INPAINT, labels, 1, &settings, images, tokens),
           VAR_EDGE_OK, "");
    expect("empty box",
           var_edge_edit(model, preview, empty, NULL, VAR_EDGE_INPAINT, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "box: expected");
    expect("box outside",
           var_edge_edit(model, preview, outside, NULL, VAR_EDGE_OUTPAINT, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "box: expected");
    expect("empty mask",
           var_edge_edit(model, preview, NULL, mask, VAR_EDGE_INPAINT, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "mask: covers none of the");
    memset(mask, 1, picture / 3);
    expect("whole mask",
           var_edge_edit(model, preview, NULL, mask, VAR_EDGE_INPAINT, labels, 1, &settings, images, NULL), VAR_EDGE_OK,
           "");
    expect("box and mask",
           var_edge_edit(model, preview, box, mask, VAR_EDGE_INPAINT, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "expected exactly one of them");
    expect("no image", var_edge_edit(model, NULL, box, NULL, VAR_EDGE_INPAINT, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "image");
    expect("mode", var_edge_edit(model, preview, box, NULL, (var_edge_mode)7, labels, 1, &settings, images, NULL),
           VAR_EDGE_BAD_ARGUMENT, "mode: expected");
    settings.smooth = 1;
    expect("smooth", var_edge_generate(model, labels, 1, &settings, images, NULL), VAR_EDGE_BAD_BUNDLE,
           "make onnx SMOOTH=1");
    settings.smooth = 0;
    free(mask);
    expect("encode", var_edge_encode(model, images, 1, tokens), VAR_EDGE_OK, "");
    expect("encode none", var_edge_encode(model, images, 0, tokens), VAR_EDGE_BAD_ARGUMENT,
           "count: expected 1 or more");

    free(keep);
    free(tokens);
    free(preview);
    free(images);
    var_edge_free(model);
    var_edge_free(NULL);
    if (failures) printf("%d failed\n", failures);
    return failures != 0;
}
