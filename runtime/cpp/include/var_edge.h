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
 * Ownership
 *   The caller owns every buffer that it passes, and may free it when the call has returned. The library owns what it
 *   returns: strings and lists live until the handle is freed, and the last error until the next call of the same
 *   thread. Paths and texts are UTF-8. Arrays are in C order: (count, T) means count rows of T values.
 *
 * Errors
 *   A function returns a status, and var_edge_last_error explains it in one line. Every function may return
 *   VAR_EDGE_BAD_ARGUMENT and VAR_EDGE_OUT_OF_MEMORY; VAR_EDGE_FAILED is for everything unforeseen. Other statuses are
 *   listed at each function. No function throws,
 *   exits or prints. After an error the handle can be used again, and the content of output buffers is undefined.
 *
 * Threads
 *   A handle serves one call at a time, and settings.draft is busy with the call too. A second call, from another
 *   thread or from a callback, returns VAR_EDGE_BAD_ARGUMENT; var_edge_free does nothing to a busy handle.
 *   var_edge_stop, var_edge_query and the functions for class names may be called at any time and from any thread.
 *   on_scale may call the functions listed under "Within on_scale". Different handles can be used in different threads
 *   at once. pthread_cancel takes effect when the call has returned.
 *
 * Processes
 *   After fork, the child cannot use the handles of its parent: every call returns VAR_EDGE_BAD_ARGUMENT, and
 *   var_edge_free does nothing. The child can create handles of its own.
 *
 * Structs
 *   Every struct that the caller passes begins with its size. The var_edge_default_* functions set it; set it yourself
 *   for var_edge_info and var_edge_memory_use. Later versions only append fields. A program that was compiled with an
 *   older header gets the default for each field that it does not know. A program that was compiled with a newer header
 *   must leave the fields at 0 that this library does not know.
 *
 * What is drawn
 *   The same directory, label, seed and settings give the same tokens as the Python runtime. A picture drawn in a batch
 *   has exactly the tokens it has alone; its pixels differ by at most 1/255. Tests assert this in FP32 on a CPU.
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

/* The version of this header. VAR_EDGE_VERSION_NUMBER is 200 for 0.2.0 and grows with each version. */
#define VAR_EDGE_VERSION_MAJOR 0
#define VAR_EDGE_VERSION_MINOR 2
#define VAR_EDGE_VERSION_PATCH 0
#define VAR_EDGE_VERSION_NUMBER (VAR_EDGE_VERSION_MAJOR * 10000 + VAR_EDGE_VERSION_MINOR * 100 + VAR_EDGE_VERSION_PATCH)

/* Returns the version of the loaded library, such as "0.2.0". */
VAR_EDGE_API const char* var_edge_version(void);

/* Returns one line for bug reports: version, commit, compiler and inference engines of the loaded library. */
VAR_EDGE_API const char* var_edge_build(void);

/* ---- Errors and messages ------------------------------------------------------------------------------------- */

typedef enum var_edge_status {
    VAR_EDGE_OK = 0,
    VAR_EDGE_BAD_ARGUMENT = 1, /* a value is out of range, a pointer is null, the handle is busy */
    VAR_EDGE_BAD_BUNDLE = 2,   /* the directory is missing, damaged, altered or of another version */
    VAR_EDGE_UNSUPPORTED = 3,  /* no GPU, no engines for it, or a backend that this library was built without */
    VAR_EDGE_FAILED = 4,       /* the inference engine failed, or the model computed NaN or infinity */
    VAR_EDGE_OUT_OF_MEMORY = 5,
    VAR_EDGE_STOPPED = 6 /* a callback or var_edge_stop ended the call */
} var_edge_status;

/* Returns the name of a status, such as "bad argument", or "unknown status". Never NULL. */
VAR_EDGE_API const char* var_edge_status_string(var_edge_status status);

/* Returns why the last call of this thread failed, or "" if it succeeded. */
VAR_EDGE_API const char* var_edge_last_error(void);

typedef enum var_edge_log_level {
    VAR_EDGE_LOG_VERBOSE = -1,
    VAR_EDGE_LOG_INFO = 0,
    VAR_EDGE_LOG_WARNING = 1,
    VAR_EDGE_LOG_ERROR = 2,
    VAR_EDGE_LOG_NONE = 3 /* as options.log_level: no messages */
} var_edge_log_level;

/* Receives a message of the library or of its inference engine: one line, of a var_edge_log_level. It may be called
 * from any thread, including the engine's own, but only once at a time for a handle. It must not use the handle. */
typedef void (*var_edge_log)(int level, const char* message, void* user);

/* ---- Loading ------------------------------------------------------------------------------------------------- */

/* A handle: a loaded model, with the buffers that it draws in. */
typedef struct var_edge_model var_edge_model;

typedef enum var_edge_backend {
    VAR_EDGE_AUTO = 0, /* TensorRT if there are engines for this machine, else ONNX Runtime: on a GPU if it can */
    VAR_EDGE_ONNXRUNTIME = 1,
    VAR_EDGE_ONNXRUNTIME_CUDA = 2,     /* with its CUDA execution provider */
    VAR_EDGE_ONNXRUNTIME_TENSORRT = 3, /* no longer supported: var_edge_create returns VAR_EDGE_UNSUPPORTED. Use
                                        * VAR_EDGE_TENSORRT, which has its engines built once. */
    VAR_EDGE_TENSORRT = 4              /* engines that make engine has built */
} var_edge_backend;

typedef enum var_edge_stage {
    VAR_EDGE_CHECKING = 0, /* computing the SHA-256 of the files; counted in bytes */
    VAR_EDGE_LOADING = 1   /* loading graphs or engines; counted one by one */
} var_edge_stage;

/* How far var_edge_create has come. */
typedef struct var_edge_progress {
    var_edge_stage stage;
    const char* name;     /* of the file or graph; valid during the callback */
    uint64_t done, total; /* in this stage */
} var_edge_progress;

/* Is called repeatedly while var_edge_create runs. Return 0 to go on; any other value ends var_edge_create with
 * VAR_EDGE_STOPPED. */
typedef int (*var_edge_on_progress)(const var_edge_progress* progress, void* user);

typedef struct var_edge_options {
    size_t struct_size;
    var_edge_backend backend;
    int32_t threads;   /* CPU threads of one run, 1 to 1024; 0: as many as this process may use */
    int32_t verify;    /* 1: check the SHA-256 of every file; sizes are always checked */
    void* cuda_stream; /* cudaStream_t to queue all work on, or NULL for a stream of the library's own. It must belong
                        * to `device` and outlive the handle. */
    var_edge_log log;  /* may be NULL */
    void* log_user;    /* passed to log */
    int32_t device; /* number of the GPU; -1: GPU 0. The TensorRT backend takes GPU 0 only: set CUDA_VISIBLE_DEVICES */
    int32_t log_level;                   /* var_edge_log_level from which on `log` receives the engine's own messages */
    const char* const* provider_options; /* options for ONNX Runtime's execution provider: "key", "value", …, NULL; or
                                          * NULL for none. VAR_EDGE_ONNXRUNTIME_CUDA only, where use_tf32 is 0 unless
                                          * it is set: TF32 changes what is drawn. */
    var_edge_on_progress on_progress;    /* may be NULL */
    void* progress_user;                 /* passed to on_progress */
} var_edge_options;

/* Sets the defaults: backend AUTO, all CPUs, files verified, log level WARNING, GPU 0. */
VAR_EDGE_API void var_edge_default_options(var_edge_options* options);

/* Loads a bundle or a directory of engines, and sets *model to a new handle, or to NULL if it fails. The caller frees
 * the handle with var_edge_free. NULL options mean the defaults; the strings in `options` may be freed afterwards, but
 * `log` is called until the handle is freed. A directory that is open as descriptor N has the name "/proc/self/fd/N".
 * Returns VAR_EDGE_BAD_BUNDLE, VAR_EDGE_UNSUPPORTED, or VAR_EDGE_STOPPED from on_progress. */
VAR_EDGE_API var_edge_status var_edge_create(const char* directory, const var_edge_options* options,
                                             var_edge_model** model);

/* Sets *other to a second handle that uses the weights of `model`, so that another thread can draw at the same time. It
 * has the options of `model` and shares its CPU threads; only its buffers take memory. The two may be freed in any
 * order. `model` must not be busy. Returns VAR_EDGE_UNSUPPORTED with TensorRT engines. */
VAR_EDGE_API var_edge_status var_edge_share(var_edge_model* model, var_edge_model** other);

/* Frees a handle and everything that it owns. NULL is allowed. A busy handle, or one of a parent process, is not freed;
 * var_edge_last_error then says so. */
VAR_EDGE_API void var_edge_free(var_edge_model* model);

/* The memory that drawing takes, in bytes. */
typedef struct var_edge_memory_use {
    size_t struct_size;
    uint64_t weights; /* size of the files that are loaded. The engine may keep a second, packed copy of some weights:
                       * plan for up to twice this size. */
    uint64_t batch;   /* exact size of a batch's buffers. ONNX Runtime keeps them until another size or kind is drawn,
                       * TensorRT until memory runs out or the handle is freed. */
    uint64_t noise;   /* random numbers while a batch is drawn: B * T floats, or B * T * V with smooth sampling */
} var_edge_memory_use;

/* Computes the memory that drawing `batch` pictures at once takes, from the manifest alone: nothing is loaded. `smooth`
 * is settings.smooth. The engine's scratch memory is not included. Set use->struct_size first. Returns
 * VAR_EDGE_BAD_BUNDLE. */
VAR_EDGE_API var_edge_status var_edge_memory(const char* directory, int32_t batch, int32_t smooth,
                                             var_edge_memory_use* use);

/* ---- About a model ------------------------------------------------------------------------------------------- */

typedef struct var_edge_info {
    size_t struct_size;
    const char* model;        /* "var_d16" */
    const char* precision;    /* "fp32", "fp16", "int8 for trt", … */
    const char* backend;      /* what it runs on, to be shown to users */
    int32_t image_size;       /* height and width of a picture, in pixels: H = W */
    int32_t num_classes;      /* labels are 0 to num_classes; num_classes itself means "no class" */
    int32_t vocab_size;       /* entries of the codebook: V */
    int32_t scales;           /* number of scales: K */
    int32_t tokens;           /* tokens of a picture, all scales together: T */
    const int32_t* batches;   /* batch sizes that the engines were built for; other numbers are split into these */
    int32_t batch_count;      /* length of batches; 0: every batch size works */
    int32_t can_encode;       /* 1: there is an encoder, so var_edge_encode and var_edge_edit work */
    int32_t can_smooth;       /* 1: settings.smooth works */
    int32_t on_device;        /* 1: settings.images_on_device works */
    int32_t has_tiny_decoder; /* 1: VAR_EDGE_DECODER_TINY works, and previews are drawn with it */
} var_edge_info;

/* Fills `info`. Set info->struct_size first. May be called at any time, from any thread. */
VAR_EDGE_API var_edge_status var_edge_query(const var_edge_model* model, var_edge_info* info);

/* Returns the usual name of a class, or NULL if it has none. May be called at any time, from any thread. */
VAR_EDGE_API const char* var_edge_class_name(const var_edge_model* model, int32_t label);

/* Returns name `index` of a class; name 0 is the usual one. Returns NULL behind the last. May be called at any time,
 * from any thread. */
VAR_EDGE_API const char* var_edge_class_synonym(const var_edge_model* model, int32_t label, int32_t index);

/* Sets *label to the label that `text` means: a number, a class name, all names of a class separated by ", ", the
 * beginning of a name if no other class has one that begins so, or "none" for no class. Upper and lower case are the
 * same. If no class or more than one fits, returns VAR_EDGE_BAD_ARGUMENT, and the message lists candidates. May be
 * called at any time, from any thread. */
VAR_EDGE_API var_edge_status var_edge_find_label(const var_edge_model* model, const char* text, int32_t* label);

/* ---- Drawing ------------------------------------------------------------------------------------------------- */

/* A scale that has just been drawn. */
typedef struct var_edge_scale {
    int32_t index, count;            /* number of this scale, from 0, and of all scales */
    int32_t side;                    /* side of its token map */
    int32_t first_picture, pictures; /* which pictures of the call this batch draws: the first, and how many */
} var_edge_scale;

/* Is called after every scale of every batch, in the thread of the call. Return 0 to go on; any other value ends the
 * call with VAR_EDGE_STOPPED. It must not leave with an exception or longjmp. */
typedef int (*var_edge_on_scale)(var_edge_model* model, const var_edge_scale* scale, void* user);

/* Receives the time that each run of a stage took, in the thread of the call. Stages are "condition", "transformer",
 * "bridge", "bridge_smooth", "decoder", "decoder_tiny" and "encoder"; with the TensorRT backend transformer and bridge
 * together are "step". Those of a draft begin with "draft ". `scale` is -1 for a stage that belongs to no scale. While
 * stages are timed, the CPU waits for the GPU after each of them. */
typedef void (*var_edge_on_stage)(const char* stage, int32_t scale, double seconds, void* user);

#define VAR_EDGE_TOP_K_DEFAULT (-1) /* 900, or vocab_size if that is smaller */

/* What makes the picture of the tokens. */
typedef enum var_edge_decoder {
    VAR_EDGE_DECODER_FULL = 0,
    VAR_EDGE_DECODER_TINY = 1 /* imitates the full one in a twentieth of the work; the bundle must have it */
} var_edge_decoder;

typedef struct var_edge_settings {
    size_t struct_size;
    uint64_t seed;  /* picture i is drawn with seed + i, which must be below 2^64 */
    double cfg;     /* guidance strength at the last scale, 0 to 1000 */
    int32_t top_k;  /* draw from the top_k most probable tokens, 1 to vocab_size; 0: all; or VAR_EDGE_TOP_K_DEFAULT */
    double top_p;   /* draw from the most probable tokens of this total probability, 1e-6 to 1; 0: all */
    int32_t batch;  /* how many pictures are drawn together at most, 1 to 1024 */
    int32_t smooth; /* 1: smooth sampling, which mixes codes; the bundle must have been exported for it */
    int32_t images_on_device;   /* 1: `images` is memory of the GPU; TensorRT backend only */
    const uint8_t* keep;        /* (count, T) or NULL: where it is 1, kept_tokens replace the tokens drawn */
    const int32_t* kept_tokens; /* (count, T), scale after scale; only with keep */
    var_edge_on_scale on_scale; /* may be NULL */
    void* user;                 /* passed to on_scale and on_stage */
    const uint64_t* seeds;      /* (count,) or NULL: the seed of each picture, in place of seed + i */
    var_edge_on_stage on_stage; /* may be NULL */
    int32_t guidance_scales;    /* draw the first so many scales with guidance, 1 to K, and the others without, which
                                 * takes half the work of the transformer there; 0: all. Engines must be built for it */
    int32_t draft_scales;       /* let `draft` draw the first so many scales, 0 to K; not with smooth */
    var_edge_model* draft;      /* another handle, of a model with the same VQVAE, or NULL. It is busy until the call
                                 * returns, and may be freed before or after the other handle */
    int32_t decoder;            /* a var_edge_decoder */
} var_edge_settings;

/* Sets the defaults: seed 0, cfg 4, top_k VAR_EDGE_TOP_K_DEFAULT, top_p 0.95, batch 8, the full decoder. */
VAR_EDGE_API void var_edge_default_settings(var_edge_settings* settings);

/* Draws one picture for each of `count` labels, 1 to 2^20, into images (count, H, W, 3), and writes their tokens, scale
 * after scale, into tokens (count, T) unless that is NULL. NULL settings mean the defaults. A picture drawn in a batch
 * has exactly the tokens it has alone; its pixels differ by at most 1/255. With settings.draft, that model draws the
 * first scales of all pictures; then this one draws the others and decodes. on_scale is called with `model` for all of
 * them. Returns VAR_EDGE_BAD_BUNDLE if smooth sampling or the tiny decoder lacks its graph or a bundle is too old to
 * draft, VAR_EDGE_UNSUPPORTED if images_on_device does not work, VAR_EDGE_FAILED, or VAR_EDGE_STOPPED. After
 * VAR_EDGE_OUT_OF_MEMORY a smaller settings.batch may work. */
VAR_EDGE_API var_edge_status var_edge_generate(var_edge_model* model, const int32_t* labels, int32_t count,
                                               const var_edge_settings* settings, uint8_t* images, int32_t* tokens);

/* Makes the running call of this handle, or the one that it drafts for, end soon with VAR_EDGE_STOPPED: within a graph
 * with ONNX Runtime; with TensorRT after the current scale if the call has on_scale or the handle drafts, else after
 * the current batch, which the GPU then draws without asking back. A call that is just finishing may still return
 * VAR_EDGE_OK. The handle can be used again. May be called at any time and from any thread, but not from a signal
 * handler. */
VAR_EDGE_API var_edge_status var_edge_stop(var_edge_model* model);

/* ---- Within on_scale, in its thread -------------------------------------------------------------------------- */

/* Writes the pictures of this batch as they are after this scale into images (pictures, H, W, 3), host memory. Runs the
 * tiny decoder if the bundle has one. After the last scale it runs the decoder of the picture. */
VAR_EDGE_API var_edge_status var_edge_preview(var_edge_model* model, uint8_t* images);

/* Writes the tokens of this scale, drawn or kept, into tokens (pictures, side * side). */
VAR_EDGE_API var_edge_status var_edge_scale_tokens(var_edge_model* model, int32_t* tokens);

/* Writes the logits of this scale into logits (pictures, side * side, V): after guidance, before top_k and top_p. */
VAR_EDGE_API var_edge_status var_edge_scale_logits(var_edge_model* model, float* logits);

/* ---- Editing ------------------------------------------------------------------------------------------------- */

/* Which part of the picture an edit draws anew. */
typedef enum var_edge_mode {
    VAR_EDGE_INPAINT = 0, /* what is inside the region; the rest is kept */
    VAR_EDGE_OUTPAINT = 1 /* what is outside the region */
} var_edge_mode;

/* Encodes images (count, H, W, 3) into tokens (count, T), both in host memory; `count` is 1 to 2^20. Returns
 * VAR_EDGE_BAD_BUNDLE if there is no encoder, VAR_EDGE_FAILED, or VAR_EDGE_STOPPED. */
VAR_EDGE_API var_edge_status var_edge_encode(var_edge_model* model, const uint8_t* images, int32_t count,
                                             int32_t* tokens);

/* Draws a part of `image` (H, W, 3) anew, once for each label. The label num_classes leaves it to the model what fits.
 * The region is either `box`, {y0, x0, y1, x1} as fractions of height and width, or `mask` (H, W), which is not 0
 * inside the region; pass NULL for the other one. What is kept is not copied: it is encoded and decoded again.
 * settings.keep must be NULL. Returns the statuses of var_edge_generate and var_edge_encode. */
VAR_EDGE_API var_edge_status var_edge_edit(var_edge_model* model, const uint8_t* image, const double* box,
                                           const uint8_t* mask, var_edge_mode mode, const int32_t* labels,
                                           int32_t count, const var_edge_settings* settings, uint8_t* images,
                                           int32_t* tokens);

/* ---- For compatibility --------------------------------------------------------------------------------------- */

/* Set the defaults in the first `size` bytes of a struct, where `size` is its size in the caller's header. C and C++
 * programs get them through the macros below. The functions var_edge_default_* themselves, which programs of 0.1.0 and
 * other languages call, set the fields of 0.1.0 only. */
VAR_EDGE_API void var_edge_init_options(var_edge_options* options, size_t size);
VAR_EDGE_API void var_edge_init_settings(var_edge_settings* settings, size_t size);
#define var_edge_default_options(options) var_edge_init_options(options, sizeof *(options))
#define var_edge_default_settings(settings) var_edge_init_settings(settings, sizeof *(settings))

#ifdef __cplusplus
}
#endif

#endif
