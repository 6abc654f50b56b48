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
 *     int32_t label;
 *     var_edge_find_label(model, "golden retriever", &label);
 *     var_edge_settings settings;
 *     var_edge_default_settings(&settings);
 *     settings.seed = 7;
 *     if (var_edge_generate(model, &label, 1, &settings, image, NULL) != VAR_EDGE_OK) {
 *         fprintf(stderr, "%s\n", var_edge_last_error());
 *     }
 *     var_edge_free(model);
 *     free(image);
 *
 * Ownership. The caller owns every buffer it passes, and may free it when the call returns. The library owns what it
 * returns: strings and lists live until the handle is freed, the last error until the next call in the same thread.
 * Paths and texts are UTF-8. Shapes are in C order: (count, T) is count rows of T values.
 *
 * Errors. A function returns a status; var_edge_last_error says why in one line. Every function may return
 * VAR_EDGE_BAD_ARGUMENT and VAR_EDGE_OUT_OF_MEMORY. No function throws, exits or prints. After an error the handle can
 * be used again, and output buffers hold nothing of use.
 *
 * Threads. A handle serves one call at a time. A second call, from another thread or from a callback, is refused with
 * VAR_EDGE_BAD_ARGUMENT; var_edge_free too leaves a busy handle as it is. Allowed at any time: var_edge_stop,
 * var_edge_query and the functions for class names. Allowed within on_scale: the functions of its group. Different
 * handles work in different threads at once. pthread_cancel takes effect when the call has returned.
 *
 * Processes. A child of fork cannot use a handle of its parent: each call is refused, and var_edge_free does nothing.
 * The child may create handles of its own.
 *
 * Structs. A struct that the caller fills begins with its size, which the functions var_edge_default_* set. Fields are
 * only ever appended: a program compiled with an older header keeps working, what it does not know has its default.
 * Fields that a newer program knows and this library does not must be 0.
 *
 * The same directory, label, seed and settings give the same tokens as the Python runtime.
 */
#ifndef VAR_EDGE_H
#define VAR_EDGE_H

#include <stddef.h>
#include <stdint.h>

#define VAR_EDGE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version ------------------------------------------------------------------------------------------------- */

/* Of this header: #if VAR_EDGE_VERSION_NUMBER >= 100 means 0.1.0 or later. */
#define VAR_EDGE_VERSION_MAJOR 0
#define VAR_EDGE_VERSION_MINOR 1
#define VAR_EDGE_VERSION_PATCH 0
#define VAR_EDGE_VERSION_NUMBER (VAR_EDGE_VERSION_MAJOR * 10000 + VAR_EDGE_VERSION_MINOR * 100 + VAR_EDGE_VERSION_PATCH)

/* The version of the library that is loaded: "0.1.0". */
VAR_EDGE_API const char* var_edge_version(void);

/* What the library was built from and with, in one line, for reports of faults: version, commit, compiler, engines. */
VAR_EDGE_API const char* var_edge_build(void);

/* ---- Errors and messages ------------------------------------------------------------------------------------- */

typedef enum var_edge_status {
    VAR_EDGE_OK = 0,
    VAR_EDGE_BAD_ARGUMENT = 1, /* a value is out of range, a pointer is null, the handle is busy */
    VAR_EDGE_BAD_BUNDLE = 2,   /* the directory is missing, damaged, altered or of another version */
    VAR_EDGE_UNSUPPORTED = 3,  /* no GPU, no engines for it, or a backend this library was built without */
    VAR_EDGE_FAILED = 4,       /* the inference engine failed, or the model computed NaN or infinity */
    VAR_EDGE_OUT_OF_MEMORY = 5,
    VAR_EDGE_STOPPED = 6 /* a callback or var_edge_stop stopped the call */
} var_edge_status;

/* What a status means: "bad argument". "unknown status" for other numbers. Never NULL. */
VAR_EDGE_API const char* var_edge_status_string(var_edge_status status);

/* Why the last call of this thread failed; "" if it did not. */
VAR_EDGE_API const char* var_edge_last_error(void);

typedef enum var_edge_log_level {
    VAR_EDGE_LOG_VERBOSE = -1,
    VAR_EDGE_LOG_INFO = 0,
    VAR_EDGE_LOG_WARNING = 1,
    VAR_EDGE_LOG_ERROR = 2,
    VAR_EDGE_LOG_NONE = 3 /* as a threshold: no message */
} var_edge_log_level;

/* Hears what the library and its inference engine have to say; a message is one line. `level` is a var_edge_log_level.
 * Called from any thread, also the engine's own, one call at a time for a handle. Must not call into the handle. */
typedef void (*var_edge_log)(int level, const char* message, void* user);

/* ---- Loading ------------------------------------------------------------------------------------------------- */

/* A loaded model. */
typedef struct var_edge_model var_edge_model;

typedef enum var_edge_backend {
    VAR_EDGE_AUTO = 0, /* TensorRT if there are engines for this machine, else ONNX Runtime on a GPU, else on the CPU */
    VAR_EDGE_ONNXRUNTIME = 1,
    VAR_EDGE_ONNXRUNTIME_CUDA = 2,     /* the CUDA execution provider */
    VAR_EDGE_ONNXRUNTIME_TENSORRT = 3, /* the TensorRT execution provider; builds its engines at the first run */
    VAR_EDGE_TENSORRT = 4              /* engines of python -m export.engine */
} var_edge_backend;

typedef enum var_edge_stage {
    VAR_EDGE_CHECKING = 0, /* the SHA-256 of the files; counted in bytes */
    VAR_EDGE_LOADING = 1   /* graphs or engines; counted one by one */
} var_edge_stage;

/* How far var_edge_create is, for var_edge_on_progress. */
typedef struct var_edge_progress {
    var_edge_stage stage;
    const char* name;     /* of the file or graph; lives during the call */
    uint64_t done, total; /* of the stage */
} var_edge_progress;

/* Called many times while a model is loaded; anything but 0 stops it with VAR_EDGE_STOPPED. */
typedef int (*var_edge_on_progress)(const var_edge_progress* progress, void* user);

typedef struct var_edge_options {
    size_t struct_size;
    var_edge_backend backend;
    int32_t threads;   /* of the CPU for one run, 1 to 1024; 0: as many as this process may use */
    int32_t verify;    /* check the SHA-256 of the directory's files; sizes are always checked */
    void* cuda_stream; /* cudaStream_t that all work is queued on; NULL: a stream of its own. It must belong to `device`
                        * and outlive the handle. */
    var_edge_log log;  /* may be NULL */
    void* log_user;
    int32_t device;    /* number of the GPU, -1: 0. The TensorRT backend takes 0 only: set CUDA_VISIBLE_DEVICES */
    int32_t log_level; /* the least var_edge_log_level of the engine's own messages that `log` hears */
    const char* const* provider_options; /* "key", "value", …, NULL: handed to ONNX Runtime's execution provider as they
                                          * are. NULL: none. With VAR_EDGE_ONNXRUNTIME_CUDA and _TENSORRT only. */
    var_edge_on_progress on_progress;    /* may be NULL */
    void* progress_user;
} var_edge_options;

/* Backend AUTO, files verified, log level WARNING, device -1. */
VAR_EDGE_API void var_edge_default_options(var_edge_options* options);

/* Loads a bundle or a directory of engines; *model is NULL if it fails. NULL options mean the defaults. The strings of
 * `options` are not needed afterwards; `log` is, until the handle is freed. An open directory can be given as
 * "/proc/self/fd/N". Returns VAR_EDGE_BAD_BUNDLE, VAR_EDGE_UNSUPPORTED, VAR_EDGE_STOPPED (by on_progress). */
VAR_EDGE_API var_edge_status var_edge_create(const char* directory, const var_edge_options* options,
                                             var_edge_model** model);

/* Another handle on the weights of `model`, to draw in another thread: it costs arrays, not weights, and no loading.
 * Both have the options of `model`; the CPU threads are shared. Either may be freed first. `model` must not be busy.
 * Returns VAR_EDGE_UNSUPPORTED for TensorRT engines. */
VAR_EDGE_API var_edge_status var_edge_share(var_edge_model* model, var_edge_model** other);

/* Frees the handle and all it owns. NULL is allowed. A busy handle, and one of a parent process, stays as it is; then
 * var_edge_last_error says so. */
VAR_EDGE_API void var_edge_free(var_edge_model* model);

/* What a model takes, for var_edge_memory. Bytes. */
typedef struct var_edge_memory_use {
    size_t struct_size;
    uint64_t weights; /* the files that drawing reads. The engine keeps them once; for some operators it makes a second,
                       * packed copy, so up to twice this. */
    uint64_t batch;   /* arrays of a batch, exactly: kept from its first use until another size or kind is drawn */
    uint64_t noise;   /* random numbers of a batch while it is drawn; counts with smooth sampling: B * T * V floats */
} var_edge_memory_use;

/* What drawing `batch` pictures at once, smooth or not, takes: read off the manifest, before any memory is taken.
 * Scratch memory of the engine comes on top. Returns VAR_EDGE_BAD_BUNDLE. */
VAR_EDGE_API var_edge_status var_edge_memory(const char* directory, int32_t batch, int32_t smooth,
                                             var_edge_memory_use* use);

/* ---- What a model is ----------------------------------------------------------------------------------------- */

typedef struct var_edge_info {
    size_t struct_size;
    const char* model;      /* "var_d16" */
    const char* precision;  /* "fp32", "fp16", "int8 for trt", … */
    const char* backend;    /* what it runs on, for people */
    int32_t image_size;     /* H and W, pixels */
    int32_t num_classes;    /* labels are 0 to num_classes; num_classes means "no class" */
    int32_t vocab_size;     /* V */
    int32_t scales;         /* K */
    int32_t tokens;         /* T, of all scales together */
    const int32_t* batches; /* numbers of pictures that can be drawn at once, if not any: others are drawn in turns */
    int32_t batch_count;    /* of them; 0: any number */
    int32_t can_encode;     /* 1: has an encoder, so var_edge_encode and var_edge_edit work */
    int32_t can_smooth;     /* 1: has the graph of settings.smooth */
    int32_t on_device;      /* 1: settings.images_on_device works */
} var_edge_info;

/* Fills `info`, whose struct_size the caller has set. At any time, from any thread. */
VAR_EDGE_API var_edge_status var_edge_query(const var_edge_model* model, var_edge_info* info);

/* The usual name of a class; NULL if it has none or there is no such label. At any time, from any thread. */
VAR_EDGE_API const char* var_edge_class_name(const var_edge_model* model, int32_t label);

/* The names of a class, one after the other: 0 is the usual one, NULL follows the last. At any time, from any thread.
 */
VAR_EDGE_API const char* var_edge_class_synonym(const var_edge_model* model, int32_t label, int32_t index);

/* The label that a text means, as in Python: a number, a name of a class, the names of one class separated by ", ", or
 * the beginning of a name if it fits one class only; "none" is no class. Upper and lower case are the same. Returns
 * VAR_EDGE_BAD_ARGUMENT for a text that means none or several, with those it may mean. At any time, from any thread. */
VAR_EDGE_API var_edge_status var_edge_find_label(const var_edge_model* model, const char* text, int32_t* label);

/* ---- Drawing ------------------------------------------------------------------------------------------------- */

/* A scale that has been drawn, for var_edge_on_scale. */
typedef struct var_edge_scale {
    int32_t index, count;            /* which of how many scales */
    int32_t side;                    /* of its token map */
    int32_t first_picture, pictures; /* of this turn */
} var_edge_scale;

/* Called after every scale of every turn, in the thread of the call; anything but 0 stops with VAR_EDGE_STOPPED. It
 * must not throw, and must not leave with longjmp. */
typedef int (*var_edge_on_scale)(var_edge_model* model, const var_edge_scale* scale, void* user);

/* Hears how long every run of a stage took, in the thread of the call: "condition", "transformer", "bridge",
 * "bridge_smooth", "decoder", "encoder"; with TensorRT "step" for the two of a scale. `scale` is -1 where a stage
 * belongs to none. Measuring makes a GPU wait after every stage. */
typedef void (*var_edge_on_stage)(const char* stage, int32_t scale, double seconds, void* user);

#define VAR_EDGE_TOP_K_DEFAULT (-1) /* 900, or all of a vocabulary that is smaller */

typedef struct var_edge_settings {
    size_t struct_size;
    uint64_t seed;  /* picture i is drawn with seed + i, which must stay below 2^64 */
    double cfg;     /* guidance at the last scale, 0 to 1000 */
    int32_t top_k;  /* 1 to vocab_size; 0: all; VAR_EDGE_TOP_K_DEFAULT */
    double top_p;   /* 1e-6 to 1; 0: all */
    int32_t batch;  /* pictures drawn together, at most: 1 to 1024 */
    int32_t smooth; /* 1: mix codes in place of drawing tokens, the published demo's "more smooth"; needs its graph */
    int32_t images_on_device;   /* 1: the images go to device memory; needs the TensorRT backend */
    const uint8_t* keep;        /* (count, T) or NULL: where 1, kept_tokens replace the tokens drawn */
    const int32_t* kept_tokens; /* (count, T), scale after scale; with keep */
    var_edge_on_scale on_scale; /* may be NULL */
    void* user;                 /* handed to on_scale and on_stage */
    const uint64_t* seeds;      /* (count,) or NULL: of each picture, in place of seed + i */
    var_edge_on_stage on_stage; /* may be NULL */
} var_edge_settings;

/* Seed 0, cfg 4, top_k VAR_EDGE_TOP_K_DEFAULT, top_p 0.95, batch 8. */
VAR_EDGE_API void var_edge_default_settings(var_edge_settings* settings);

/* Draws `count` pictures, 1 to 2^20: images (count, H, W, 3) bytes; tokens (count, T), scale after scale, or NULL. NULL
 * settings mean the defaults. The same seed gives the same picture, alone or in a batch. Returns VAR_EDGE_BAD_BUNDLE
 * (smooth without its graph), VAR_EDGE_UNSUPPORTED (images_on_device), VAR_EDGE_FAILED, VAR_EDGE_STOPPED. */
VAR_EDGE_API var_edge_status var_edge_generate(var_edge_model* model, const int32_t* labels, int32_t count,
                                               const var_edge_settings* settings, uint8_t* images, int32_t* tokens);

/* Makes the running call of this handle, if there is one, return VAR_EDGE_STOPPED soon: within a graph with ONNX
 * Runtime, after the scale with TensorRT. From any thread, but not from a signal handler. The handle can be used again.
 * A call that is about to return may still return VAR_EDGE_OK. */
VAR_EDGE_API var_edge_status var_edge_stop(var_edge_model* model);

/* ---- Within on_scale, in its thread -------------------------------------------------------------------------- */

/* The pictures of this turn as they are now, (pictures, H, W, 3) bytes in host memory. Costs a run of the decoder. */
VAR_EDGE_API var_edge_status var_edge_preview(var_edge_model* model, uint8_t* images);

/* The tokens of this scale, (pictures, side * side), drawn or kept. */
VAR_EDGE_API var_edge_status var_edge_scale_tokens(var_edge_model* model, int32_t* tokens);

/* The logits of this scale with guidance, before top_k and top_p: (pictures, side * side, V). */
VAR_EDGE_API var_edge_status var_edge_scale_logits(var_edge_model* model, float* logits);

/* ---- Editing ------------------------------------------------------------------------------------------------- */

/* What an edit draws anew. */
typedef enum var_edge_mode {
    VAR_EDGE_INPAINT = 0, /* the inside of the region; the rest of the picture is kept */
    VAR_EDGE_OUTPAINT = 1 /* the outside of it */
} var_edge_mode;

/* Tokens (count, T) of pictures (count, H, W, 3), both in host memory; `count` 1 to 2^20. Returns VAR_EDGE_BAD_BUNDLE
 * without an encoder, VAR_EDGE_FAILED, VAR_EDGE_STOPPED. */
VAR_EDGE_API var_edge_status var_edge_encode(var_edge_model* model, const uint8_t* images, int32_t count,
                                             int32_t* tokens);

/* Draws a part of `image` (H, W, 3) anew, once for each label; `num_classes` is plain in-painting. The region is `box`
 * {y0, x0, y1, x1} in shares of the picture, or `mask` (H, W), inside where it is not 0; the other one is NULL. The
 * kept part comes back as the VQVAE reconstructs it. Settings without keep. Returns what var_edge_generate and
 * var_edge_encode return. */
VAR_EDGE_API var_edge_status var_edge_edit(var_edge_model* model, const uint8_t* image, const double* box,
                                           const uint8_t* mask, var_edge_mode mode, const int32_t* labels,
                                           int32_t count, const var_edge_settings* settings, uint8_t* images,
                                           int32_t* tokens);

/* ---- For compatibility --------------------------------------------------------------------------------------- */

/* The defaults in the first `size` bytes of a struct, `size` being its size in the caller's header. The functions
 * var_edge_default_* alone, as an older program or another language calls them, set the fields that 0.1.0 had. */
VAR_EDGE_API void var_edge_init_options(var_edge_options* options, size_t size);
VAR_EDGE_API void var_edge_init_settings(var_edge_settings* settings, size_t size);
#define var_edge_default_options(options) var_edge_init_options(options, sizeof *(options))
#define var_edge_default_settings(settings) var_edge_init_settings(settings, sizeof *(settings))

#ifdef __cplusplus
}
#endif

#endif
