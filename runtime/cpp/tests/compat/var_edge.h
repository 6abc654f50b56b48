/* The header of 0.1.0 as it was, for compat.c. */
/* VAR Edge: VAR image generation from a bundle or a directory of TensorRT engines, as a C library.
 *
 *     #include <var_edge.h>
 *
 *     var_edge_model* model = NULL;
 *     if (var_edge_create("build/var_d16/fp32", NULL, &model) != VAR_EDGE_OK) {
 *         fprintf(stderr, "%s\n", var_edge_last_error());
 *         return 1;
 *     }
 *     var_edge_info info;
 *     info.struct_size = sizeof info;
 *     var_edge_query(model, &info);
 *     uint8_t* image = malloc((size_t)info.image_size * info.image_size * 3);
 *
 *     var_edge_settings settings;
 *     var_edge_default_settings(&settings);
 *     settings.seed = 7;
 *     const int32_t label = 207;
 *     if (var_edge_generate(model, &label, 1, &settings, image, NULL) != VAR_EDGE_OK) {
 *         fprintf(stderr, "%s\n", var_edge_last_error());
 *     }
 *     var_edge_free(model);
 *     free(image);
 *
 * Ownership. The caller owns every buffer it passes; the library owns what it returns: strings live until the handle is
 * freed, the last error until the next call in the same thread. Paths and texts are UTF-8.
 *
 * Threads. A handle serves one thread at a time; different handles may be used in different threads at once. No function
 * throws, exits or prints. A callback must not call into the handle that calls it, except var_edge_preview.
 *
 * The same directory, label, seed and settings give the same tokens as the Python runtime.
 */
#ifndef VAR_EDGE_H
#define VAR_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VAR_EDGE_API
#else
#define VAR_EDGE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A loaded model. */
typedef struct var_edge_model var_edge_model;

typedef enum var_edge_status {
    VAR_EDGE_OK = 0,
    VAR_EDGE_BAD_ARGUMENT = 1, /* a value is out of range, a pointer is null */
    VAR_EDGE_BAD_BUNDLE = 2,   /* the directory is missing, damaged, altered or of another version */
    VAR_EDGE_UNSUPPORTED = 3,  /* no GPU, no engines for it, or a backend this library was built without */
    VAR_EDGE_FAILED = 4,       /* the inference engine failed while running */
    VAR_EDGE_OUT_OF_MEMORY = 5,
    VAR_EDGE_STOPPED = 6 /* a callback asked to stop */
} var_edge_status;

typedef enum var_edge_backend {
    VAR_EDGE_AUTO = 0, /* TensorRT where there are engines for this machine, else ONNX Runtime on a GPU, else on the CPU */
    VAR_EDGE_ONNXRUNTIME = 1,
    VAR_EDGE_ONNXRUNTIME_CUDA = 2, /* the CUDA execution provider */
    VAR_EDGE_ONNXRUNTIME_TENSORRT = 3, /* the TensorRT execution provider; builds its engines at the first run */
    VAR_EDGE_TENSORRT = 4 /* engines of python -m export.engine */
} var_edge_backend;

/* Hears what the library has to say; a message is one line. Level: 0 information, 1 warning. */
typedef void (*var_edge_log)(int level, const char* message, void* user);

typedef struct var_edge_options {
    size_t struct_size;
    var_edge_backend backend;
    int32_t threads;   /* of the CPU; 0: the engine's choice */
    int32_t verify;    /* check the SHA-256 of the directory's files; sizes are always checked */
    void* cuda_stream; /* cudaStream_t that all work is queued on; NULL: a stream of its own */
    var_edge_log log;  /* may be NULL */
    void* log_user;
} var_edge_options;

typedef struct var_edge_info {
    size_t struct_size;
    const char* model;     /* "var_d16" */
    const char* precision; /* "fp32", "fp16", "int8 for trt", … */
    const char* backend;   /* what it runs on, for people */
    int32_t image_size;    /* pixels of a side */
    int32_t num_classes;   /* labels are 0 to num_classes; num_classes means "no class" */
    int32_t vocab_size;
    int32_t scales;        /* K */
    int32_t tokens;        /* T, of all scales together */
} var_edge_info;

/* A scale that has been drawn, for var_edge_on_scale. */
typedef struct var_edge_scale {
    int32_t index, count;          /* which of how many scales */
    int32_t side;                  /* of its token map */
    int32_t first_picture, pictures; /* of this turn */
} var_edge_scale;

/* What an edit draws anew. */
typedef enum var_edge_mode {
    VAR_EDGE_INPAINT = 0, /* the inside of the region; the rest of the picture is kept */
    VAR_EDGE_OUTPAINT = 1 /* the outside of it */
} var_edge_mode;

/* Called after every scale of every turn; anything but 0 stops the generation with VAR_EDGE_STOPPED. */
typedef int (*var_edge_on_scale)(var_edge_model* model, const var_edge_scale* scale, void* user);

typedef struct var_edge_settings {
    size_t struct_size;
    uint64_t seed;  /* picture i is drawn with seed + i */
    double cfg;     /* guidance at the last scale, from 0 up */
    int32_t top_k;  /* 0: all */
    double top_p;   /* 0 to 1; 0: all */
    int32_t batch;  /* pictures drawn together, at most */
    int32_t smooth; /* 1: mix codes in place of drawing tokens, the published demo's "more smooth"; needs its graph */
    int32_t images_on_device; /* 1: the images go to device memory; needs a GPU backend */
    const uint8_t* keep;        /* (count, T) or NULL: where 1, kept_tokens replace the tokens drawn */
    const int32_t* kept_tokens; /* (count, T), scale after scale; with keep */
    var_edge_on_scale on_scale; /* may be NULL */
    void* user;                 /* handed to on_scale */
} var_edge_settings;

/* Version of the library: "0.1.0". */
VAR_EDGE_API const char* var_edge_version(void);

/* Why the last call of this thread failed; "" if it did not. */
VAR_EDGE_API const char* var_edge_last_error(void);

VAR_EDGE_API void var_edge_default_options(var_edge_options* options);
VAR_EDGE_API void var_edge_default_settings(var_edge_settings* settings);

/* Loads a bundle or a directory of engines. NULL options mean the defaults. */
VAR_EDGE_API var_edge_status var_edge_create(const char* directory, const var_edge_options* options, var_edge_model** model);

VAR_EDGE_API var_edge_status var_edge_query(const var_edge_model* model, var_edge_info* info);

/* The usual name of a class, NULL if it has none or there is no such label. */
VAR_EDGE_API const char* var_edge_class_name(const var_edge_model* model, int32_t label);

/* Draws `count` pictures: images (count, H, W, 3) bytes; tokens (count, T), scale after scale, or NULL. NULL settings
 * mean the defaults. */
VAR_EDGE_API var_edge_status var_edge_generate(var_edge_model* model, const int32_t* labels, int32_t count,
                                               const var_edge_settings* settings, uint8_t* images, int32_t* tokens);

/* Within on_scale: the pictures of this turn as they are now, (pictures, H, W, 3) bytes in host memory. */
VAR_EDGE_API var_edge_status var_edge_preview(var_edge_model* model, uint8_t* images);

/* Tokens (count, T) of pictures (count, H, W, 3), both in host memory. Needs a bundle with an encoder. */
VAR_EDGE_API var_edge_status var_edge_encode(var_edge_model* model, const uint8_t* images, int32_t count, int32_t* tokens);

/* Draws a part of `image` (H, W, 3) anew, once for each label; `num_classes` is plain in-painting. The region is `box`
 * {y0, x0, y1, x1} in shares of the picture, or `mask` (H, W), inside where it is not 0; the other one is NULL. The kept
 * part comes back as the VQVAE reconstructs it. Settings without keep. */
VAR_EDGE_API var_edge_status var_edge_edit(var_edge_model* model, const uint8_t* image, const double* box,
                                           const uint8_t* mask, var_edge_mode mode, const int32_t* labels, int32_t count,
                                           const var_edge_settings* settings, uint8_t* images, int32_t* tokens);

/* NULL is allowed. */
VAR_EDGE_API void var_edge_free(var_edge_model* model);

#ifdef __cplusplus
}
#endif

#endif
