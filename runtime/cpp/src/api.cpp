// The C boundary: arguments in, one try around each call, a status and a message out.
#include <algorithm>
#include <memory>
#include <new>

#include "editing.hpp"
#include "error.hpp"
#include "pipeline.hpp"
#include "var_edge.h"

using namespace var_edge_impl;

struct var_edge_model {
    explicit var_edge_model(Pipeline&& loaded, std::string name) : pipeline(std::move(loaded)), backend(std::move(name)) {}
    Pipeline pipeline;
    std::string backend;  // its name, which var_edge_query hands out
};

namespace {

thread_local std::string last_error;

// Nothing passes through: not an exception of ours, of the engine or of the standard library.
template <typename Call>
var_edge_status guarded(Call&& call) noexcept {
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
            last_error = error.what();
        } catch (...) {
        }
        return tells_out_of_memory(error.what()) ? VAR_EDGE_OUT_OF_MEMORY : VAR_EDGE_FAILED;
    } catch (...) {
        last_error = "unknown";
        return VAR_EDGE_FAILED;
    }
}

void required(const void* pointer, const char* name) {
    if (!pointer) throw bad_argument(std::string(name) + ": expected a pointer, found NULL");
}

template <typename T>
void right_size(const T* value, const char* name) {
    if (value->struct_size != sizeof(T)) {
        throw bad_argument(std::string(name) + ".struct_size: expected " + std::to_string(sizeof(T)) + ", found " +
                           std::to_string(value->struct_size) + "; set it, and use the header of this library");
    }
}

// The settings, or the defaults as far as the vocabulary allows.
var_edge_settings checked(const var_edge_model* model, const var_edge_settings* settings) {
    if (settings) {
        right_size(settings, "settings");
        return *settings;
    }
    var_edge_settings defaults;
    var_edge_default_settings(&defaults);
    defaults.top_k = std::int32_t(std::min<std::int64_t>(defaults.top_k, model->pipeline.manifest().model.vocab_size));
    return defaults;
}

Request request_of(var_edge_model* model, const int32_t* labels, int32_t count, const var_edge_settings& asked) {
    Request request;
    if (count > 0) request.labels.assign(labels, labels + count);
    request.seed = asked.seed;
    request.sampling = {asked.cfg, asked.top_k, asked.top_p, asked.smooth != 0};
    request.batch = asked.batch;
    request.keep = asked.keep;
    request.kept_tokens = asked.kept_tokens;
    if (asked.on_scale) {
        request.on_scale = [model, asked](std::int64_t k, std::int64_t first, std::int64_t pictures) {
            const std::vector<Scale>& scales = model->pipeline.manifest().scales;
            const var_edge_scale scale = {std::int32_t(k), std::int32_t(scales.size()), std::int32_t(scales[std::size_t(k)].side),
                                          std::int32_t(first), std::int32_t(pictures)};
            return asked.on_scale(model, &scale, asked.user) == 0;
        };
    }
    return request;
}

}  // namespace

const char* var_edge_version(void) { return VAR_EDGE_VERSION; }

const char* var_edge_last_error(void) { return last_error.c_str(); }

void var_edge_default_options(var_edge_options* options) {
    if (!options) return;
    *options = {};
    options->struct_size = sizeof *options;
    options->verify = 1;
}

void var_edge_default_settings(var_edge_settings* settings) {
    if (!settings) return;
    const Sampling sampling;
    *settings = {};
    settings->struct_size = sizeof *settings;
    settings->cfg = sampling.cfg;
    settings->top_k = std::int32_t(sampling.top_k);
    settings->top_p = sampling.top_p;
    settings->batch = BATCH;
}

var_edge_status var_edge_create(const char* directory, const var_edge_options* options, var_edge_model** model) {
    if (model) *model = nullptr;
    return guarded([&] {
        required(directory, "directory");
        required(model, "model");
        var_edge_options asked;
        var_edge_default_options(&asked);
        if (options) {
            right_size(options, "options");
            asked = *options;
        }
        if (asked.threads < 0) throw bad_argument("threads: expected 0 or more, found " + std::to_string(asked.threads));
        BackendOptions chosen;
        chosen.threads = asked.threads;
        chosen.verify = asked.verify != 0;
        chosen.stream = asked.cuda_stream;
        if (asked.log) {
            chosen.log = [asked](int level, const std::string& message) { asked.log(level, message.c_str(), asked.log_user); };
        }
        Pipeline pipeline(directory, asked.backend, chosen);
        const std::string name = pipeline.backend().name();
        chosen.log(0, std::string(directory) + ": loaded with " + name);
        *model = new var_edge_model(std::move(pipeline), name);
    });
}

var_edge_status var_edge_query(const var_edge_model* model, var_edge_info* info) {
    return guarded([&] {
        required(model, "model");
        required(info, "info");
        right_size(info, "info");
        const Manifest& manifest = model->pipeline.manifest();
        info->model = manifest.model.name.c_str();
        info->precision = manifest.precision.c_str();
        info->backend = model->backend.c_str();
        info->image_size = std::int32_t(manifest.model.image_size);
        info->num_classes = std::int32_t(manifest.model.num_classes);
        info->vocab_size = std::int32_t(manifest.model.vocab_size);
        info->scales = std::int32_t(manifest.scales.size());
        info->tokens = std::int32_t(manifest.model.tokens());
    });
}

const char* var_edge_class_name(const var_edge_model* model, int32_t label) {
    if (!model || label < 0) return nullptr;
    const auto& names = model->pipeline.classes();
    return std::size_t(label) < names.size() ? names[std::size_t(label)].front().c_str() : nullptr;
}

var_edge_status var_edge_generate(var_edge_model* model, const int32_t* labels, int32_t count, const var_edge_settings* settings,
                                  uint8_t* images, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(labels, "labels");
        required(images, "images");
        const var_edge_settings asked = checked(model, settings);
        model->pipeline.generate(request_of(model, labels, count, asked), images, asked.images_on_device != 0, tokens);
    });
}

var_edge_status var_edge_edit(var_edge_model* model, const uint8_t* image, const double* box, const uint8_t* mask,
                              var_edge_mode mode, const int32_t* labels, int32_t count, const var_edge_settings* settings,
                              uint8_t* images, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(image, "image");
        required(labels, "labels");
        required(images, "images");
        if (!box == !mask) throw bad_argument("box, mask: expected one of them, and NULL for the other");
        if (mode != VAR_EDGE_INPAINT && mode != VAR_EDGE_OUTPAINT) {
            throw bad_argument("mode: expected one of var_edge_mode, found " + std::to_string(int(mode)));
        }
        const var_edge_settings asked = checked(model, settings);
        const Model& about = model->pipeline.manifest().model;
        const bool outpaint = mode == VAR_EDGE_OUTPAINT;
        const auto kept = box ? kept_cells_of_box({box[0], box[1], box[2], box[3]}, outpaint, about)
                              : kept_cells_of_mask(mask, outpaint, about);
        model->pipeline.edit(request_of(model, labels, count, asked), image, kept, images, asked.images_on_device != 0, tokens);
    });
}

var_edge_status var_edge_preview(var_edge_model* model, uint8_t* images) {
    return guarded([&] {
        required(model, "model");
        required(images, "images");
        model->pipeline.preview(images);
    });
}

var_edge_status var_edge_encode(var_edge_model* model, const uint8_t* images, int32_t count, int32_t* tokens) {
    return guarded([&] {
        required(model, "model");
        required(images, "images");
        required(tokens, "tokens");
        if (count < 1) throw bad_argument("count: expected 1 or more, found " + std::to_string(count));
        model->pipeline.encode(images, count, tokens);
    });
}

void var_edge_free(var_edge_model* model) { delete model; }
