// The C boundary: arguments in, one try around each call, a status and a message out.
#include "var_edge.h"

#include <pthread.h>

#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include "api/handle.hpp"
#include "api/structs.hpp"
#include "errors.hpp"
#include "runtime/editing.hpp"
#include "runtime/estimate.hpp"
#include "runtime/pipeline.hpp"

#ifndef VAR_EDGE_COMMIT
#define VAR_EDGE_COMMIT "unknown"
#endif

using namespace var_edge_impl;

namespace {

thread_local std::string last_error;

// Puts pthread_cancel off while it lives: its unwinding cannot pass through an engine, and would end the process.
class NoCancel {
  public:
    NoCancel() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
    ~NoCancel() { pthread_setcancelstate(before_, nullptr); }
    NoCancel(const NoCancel&) = delete;
    NoCancel& operator=(const NoCancel&) = delete;

  private:
    int before_ = PTHREAD_CANCEL_ENABLE;
};

// Nothing passes through: not an exception of ours, of the engine or of the standard library.
template <typename Call>
var_edge_status guarded(Call&& call) noexcept {
    const NoCancel no_cancel;
    try {
        last_error.clear();
        call();
        return VAR_EDGE_OK;
    } catch (const Error& error) {
        try {
            last_error = error.what();
        } catch (...) {
        }
        return error.status;
    } catch (const std::bad_alloc&) {
        last_error = "out of memory";  // short enough to need none
        return VAR_EDGE_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
        try {
            last_error = one_line(error.what());
        } catch (...) {
        }
        return tells_out_of_memory(error.what()) ? VAR_EDGE_OUT_OF_MEMORY : VAR_EDGE_FAILED;
    } catch (...) {
        last_error = "unknown";
        return VAR_EDGE_FAILED;
    }
}

// The same for a call that a handle serves alone, or with a second one that drafts.
template <typename Call>
void alone(var_edge_model* model, Call&& call, var_edge_model* draft = nullptr) {
    if (draft && draft == model) throw bad_argument("draft: expected another handle than the one that refines");
    const Exclusive exclusive(model);
    std::optional<Drafting> drafting;
    if (draft) drafting.emplace(model, draft);
    try {
        call(model->pipeline);
    } catch (const Error& error) {
        if (error.status == VAR_EDGE_FAILED && (exclusive.stopped() || (drafting && drafting->stopped()))) {
            throw Error(VAR_EDGE_STOPPED, "stopped by var_edge_stop");
        }
        throw;
    }
}

void required(const void* pointer, const char* name) {
    if (!pointer) throw bad_argument(std::string(name) + ": expected a pointer, found NULL");
}

BackendOptions backend_options(const var_edge_options& asked) {
    BackendOptions chosen;
    if (asked.backend == VAR_EDGE_ONNXRUNTIME_TENSORRT) {
        throw unsupported(
            "backend: VAR_EDGE_ONNXRUNTIME_TENSORRT is no longer supported; use VAR_EDGE_TENSORRT with the"
            " engines that make engine builds, or VAR_EDGE_ONNXRUNTIME_CUDA");
    }
    if (asked.threads && !limits::THREADS.holds(asked.threads)) {
        throw bad_argument("threads: expected 0 (all) to " + number(limits::THREADS.most) + ", found " +
                           std::to_string(asked.threads));
    }
    if (asked.device < -1) throw bad_argument("device: expected -1 or more, found " + std::to_string(asked.device));
    if (asked.log_level < VAR_EDGE_LOG_VERBOSE || asked.log_level > VAR_EDGE_LOG_NONE) {
        throw bad_argument("log_level: expected one of var_edge_log_level, found " + std::to_string(asked.log_level));
    }
    const bool provider = asked.backend == VAR_EDGE_ONNXRUNTIME_CUDA;
    for (const char* const* entry = asked.provider_options; entry && *entry; entry += 2) {
        if (!provider) throw bad_argument("provider_options: expected NULL, as this backend has no execution provider");
        if (!entry[1]) {
            throw bad_argument("provider_options: expected a value after " + excerpt(*entry) + ", found NULL");
        }
        chosen.provider.emplace_back(entry[0], entry[1]);
    }
    chosen.threads = asked.threads;
    chosen.verify = asked.verify != 0;
    chosen.stream = asked.cuda_stream;
    chosen.device = asked.device;
    chosen.log_level = asked.log ? asked.log_level : int(VAR_EDGE_LOG_NONE);
    if (asked.log) {
        chosen.log = [log = asked.log, user = asked.log_user, mutex = std::make_shared<std::mutex>()](
                         int level, const std::string& message) {
            const std::lock_guard<std::mutex> one_at_a_time(*mutex);
            log(level, message.c_str(), user);
        };
    }
    if (asked.on_progress) {
        chosen.progress = [hear = asked.on_progress, user = asked.progress_user](
                              var_edge_stage stage, const char* name, std::uint64_t done, std::uint64_t total) {
            const var_edge_progress progress = {stage, name, done, total};
            if (hear(&progress, user)) throw Error(VAR_EDGE_STOPPED, "stopped by on_progress");
        };
    }
    return chosen;
}

Request request_of(var_edge_model* model, const int32_t* labels, int32_t count, const var_edge_settings& asked) {
    const Manifest& manifest = model->pipeline.manifest();
    Request request;
    if (count > 0) request.labels.assign(labels, labels + count);
    request.seed = asked.seed;
    request.seeds = asked.seeds;
    request.sampling = {asked.cfg, asked.top_k, asked.top_p, asked.smooth != 0, asked.guidance_scales, asked.decoder};
    if (asked.top_k == VAR_EDGE_TOP_K_DEFAULT) {
        request.sampling.top_k = std::min(Sampling().top_k, manifest.model.vocab_size);
    }
    request.batch = asked.batch;
    if (!asked.draft && asked.draft_scales) {
        throw bad_argument("draft_scales: expected 0 without a draft, found " + std::to_string(asked.draft_scales));
    }
    request.draft = asked.draft ? &asked.draft->pipeline : nullptr;
    request.draft_scales = asked.draft_scales;
    request.keep = asked.keep;
    request.kept_tokens = asked.kept_tokens;
    if (asked.on_scale) {
        request.on_scale = [model, asked, &manifest](std::int64_t k, std::int64_t first, std::int64_t pictures) {
            const std::vector<Scale>& scales = manifest.scales;
            const var_edge_scale scale = {std::int32_t(k), std::int32_t(scales.size()),
                                          std::int32_t(scales[std::size_t(k)].side), std::int32_t(first),
                                          std::int32_t(pictures)};
            return asked.on_scale(model, &scale, asked.user) == 0;
        };
    }
    if (asked.on_stage) {
        request.on_stage = [asked](const char* stage, std::int64_t scale, double seconds) {
            asked.on_stage(stage, std::int32_t(scale), seconds, asked.user);
        };
    }
    return request;
}

const std::string* name_of(const var_edge_model* model, int32_t label, int32_t index) {
    if (!model || label < 0 || index < 0) return nullptr;
    const ClassNames& names = model->pipeline.classes();
    if (std::size_t(label) >= names.size() || std::size_t(index) >= names[std::size_t(label)].size()) return nullptr;
    return &names[std::size_t(label)][std::size_t(index)];
}

}  // namespace

/* ---- Version, errors ---- */

const char* var_edge_version(void) { return VAR_EDGE_VERSION; }

const char* var_edge_build(void) {
    return "VAR Edge " VAR_EDGE_VERSION ", commit " VAR_EDGE_COMMIT ", compiler " __VERSION__
#ifdef VAR_EDGE_WITH_ONNXRUNTIME
           ", ONNX Runtime"
#endif
#ifdef VAR_EDGE_WITH_TENSORRT
           ", TensorRT"
#endif
        ;
}

const char* var_edge_status_string(var_edge_status status) {
    switch (status) {
        case VAR_EDGE_OK: return "ok";
        case VAR_EDGE_BAD_ARGUMENT: return "bad argument";
        case VAR_EDGE_BAD_BUNDLE: return "bad bundle";
        case VAR_EDGE_UNSUPPORTED: return "unsupported";
        case VAR_EDGE_FAILED: return "failed";
        case VAR_EDGE_OUT_OF_MEMORY: return "out of memory";
        case VAR_EDGE_STOPPED: return "stopped";
    }
    return "unknown status";
}

const char* var_edge_last_error(void) { return last_error.c_str(); }

/* ---- Loading ---- */

void var_edge_init_options(var_edge_options* options, size_t size) { write_defaults(options, size); }
void var_edge_init_settings(var_edge_settings* settings, size_t size) { write_defaults(settings, size); }

// The header's macros of these names call the functions above. The functions themselves are for callers that have no
// macros, or those of 0.1.0.
#undef var_edge_default_options
#undef var_edge_default_settings
void var_edge_default_options(var_edge_options* options) { write_defaults(options, Known<var_edge_options>::OLDEST); }
void var_edge_default_settings(var_edge_settings* settings) {
    write_defaults(settings, Known<var_edge_settings>::OLDEST);
}

var_edge_status var_edge_create(const char* directory, const var_edge_options* options, var_edge_model** model) {
    if (model) *model = nullptr;
    return guarded([&] {
        required(directory, "directory");
        required(model, "model");
        const var_edge_options asked = read_struct(options, "options");
        const BackendOptions chosen = backend_options(asked);
        auto loaded = std::make_unique<var_edge_model>(directory, asked.backend, chosen);
        chosen.log(VAR_EDGE_LOG_INFO, std::string(directory) + ": loaded with " + loaded->backend);
        *model = loaded.release();
    });
}

var_edge_status var_edge_share(var_edge_model* model, var_edge_model** other) {
    if (other) *other = nullptr;
    return guarded([&] {
        required(model, "model");
        required(other, "other");
        alone(model, [&](const Pipeline& pipeline) { *other = new var_edge_model(pipeline); });
    });
}

void var_edge_free(var_edge_model* model) {
    const var_edge_status status = guarded([&] {
        if (model) const Exclusive exclusive(model);  // throws if it is busy
    });
    if (status == VAR_EDGE_OK) delete model;
}

var_edge_status var_edge_memory(const char* directory, int32_t batch, int32_t smooth, var_edge_memory_use* use) {
    return guarded([&] {
        required(directory, "directory");
        required(use, "use");
        if (!limits::BATCH.holds(batch)) {
            throw bad_argument("batch: expected 1 to " + number(limits::BATCH.most) + ", found " +
                               std::to_string(batch));
        }
        const MemoryUse found = memory_use(Manifest::load(directory, false), batch, smooth != 0);
        write_struct(use, {0, found.weights, found.batch, found.noise}, "use");
    });
}

/* ---- What a model is ---- */

var_edge_status var_edge_query(const var_edge_model* model, var_edge_info* info) {
    return guarded([&] {
        required(model, "model");
        required(info, "info");
        const Manifest& manifest = model->pipeline.manifest();
        const Backend& backend = model->pipeline.backend();
        var_edge_info found{};
        found.model = manifest.model.name.c_str();
        found.precision = manifest.precision.c_str();
        found.backend = model->backend.c_str();
        found.image_size = std::int32_t(manifest.model.image_size);
        found.num_classes = std::int32_t(manifest.model.num_classes);
        found.vocab_size = std::int32_t(manifest.model.vocab_size);
        found.scales = std::int32_t(manifest.scales.size());
        found.tokens = std::int32_t(manifest.model.tokens());
        found.batches = model->batches.data();
        found.batch_count = std::int32_t(model->batches.size());
        found.can_encode = manifest.graphs.count("encoder") != 0;
        found.can_smooth = manifest.graphs.count(SMOOTH_BRIDGE) != 0;
        found.on_device = backend.on_device();
        found.has_tiny_decoder = manifest.graphs.count(TINY_DECODER) != 0;
        write_struct(info, found, "info");
    });
}

const char* var_edge_class_name(const var_edge_model* model, int32_t label) {
    return var_edge_class_synonym(model, label, 0);
}

const char* var_edge_class_synonym(const var_edge_model* model, int32_t label, int32_t index) {
    const std::string* name = name_of(model, label, index);
    return name ? name->c_str() : nullptr;
}

var_edge_status var_edge_find_label(const var_edge_model* model, const char* text, int32_t* label) {
    return guarded([&] {
        required(model, "model");
        required(text, "text");
        required(label, "label");
        *label =
            std::int32_t(find_label(text, model->pipeline.classes(), model->pipeline.manifest().model.num_classes));
    });
}

/* ---- Drawing ---- */

var_edge_status var_edge_generate(var_edge_model* model, const int32_t* labels, int32_t count,
                                  const var_edge_settings* settings, uint8_t* images, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(labels, "labels");
        required(images, "images");
        const var_edge_settings asked = read_struct(settings, "settings");
        const auto draw = [&](Pipeline& pipeline) {
            pipeline.generate(request_of(model, labels, count, asked), images, asked.images_on_device != 0, tokens);
        };
        alone(model, draw, asked.draft);
    });
}

var_edge_status var_edge_stop(var_edge_model* model) {
    return guarded([&] {
        required(model, "model");
        stop(model);
    });
}

var_edge_status var_edge_preview(var_edge_model* model, uint8_t* images) {
    return guarded([&] {
        required(model, "model");
        required(images, "images");
        model->pipeline.preview(images);
    });
}

var_edge_status var_edge_scale_tokens(var_edge_model* model, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(tokens, "tokens");
        model->pipeline.scale_tokens(tokens);
    });
}

var_edge_status var_edge_scale_logits(var_edge_model* model, float* logits) {
    return guarded([&] {
        required(model, "model");
        required(logits, "logits");
        model->pipeline.scale_logits(logits);
    });
}

/* ---- Editing ---- */

var_edge_status var_edge_encode(var_edge_model* model, const uint8_t* images, int32_t count, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(images, "images");
        required(tokens, "tokens");
        if (count < 1) throw bad_argument("count: expected 1 or more, found " + std::to_string(count));
        alone(model, [&](Pipeline& pipeline) { pipeline.encode(images, count, tokens); });
    });
}

var_edge_status var_edge_edit(var_edge_model* model, const uint8_t* image, const double* box, const uint8_t* mask,
                              var_edge_mode mode, const int32_t* labels, int32_t count,
                              const var_edge_settings* settings, uint8_t* images, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(image, "image");
        required(labels, "labels");
        required(images, "images");
        if (!box == !mask)
            throw bad_argument(
                "box, mask: expected exactly one of them, found both or neither; pass NULL for the other");
        if (mode != VAR_EDGE_INPAINT && mode != VAR_EDGE_OUTPAINT) {
            throw bad_argument("mode: expected one of var_edge_mode, found " + std::to_string(int(mode)));
        }
        const var_edge_settings asked = read_struct(settings, "settings");
        const Model& about = model->pipeline.manifest().model;
        const bool outpaint = mode == VAR_EDGE_OUTPAINT;
        const auto draw = [&](Pipeline& pipeline) {
            const auto kept = box ? kept_cells_of_box({box[0], box[1], box[2], box[3]}, outpaint, about)
                                  : kept_cells_of_mask(mask, outpaint, about);
            pipeline.edit(request_of(model, labels, count, asked), image, kept, images, asked.images_on_device != 0,
                          tokens);
        };
        alone(model, draw, asked.draft);
    });
}
