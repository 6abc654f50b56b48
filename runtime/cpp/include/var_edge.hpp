// VAR Edge for C++17: wraps the C API of var_edge.h, with exceptions and buffers that own their memory. Header only.
//
//     var_edge::Model model("build/var_d16/fp32");
//     var_edge::Settings settings;
//     settings.seed = 7;
//     var_edge::Pictures pictures = model.generate({model.label("golden retriever"), 980}, settings);
//     pictures.image(0);  // (H, W, 3) bytes
//
// Replace what a mask covers in a photo by a volcano, and show a preview after each scale:
//
//     model.edit(photo, mask, VAR_EDGE_INPAINT, {model.label("volcano")}, settings, [&](const var_edge::Scale& scale) {
//         show(scale.preview());
//         return !cancelled;
//     });
//
// Let a large model draw the first eight scales, and a small one the rest:
//
//     var_edge::Model large("build/var_d30/fp16");
//     settings.draft = large.get();
//     settings.draft_scales = 8;
//     model.generate({980}, settings);
//
// Functions throw var_edge::Error for a status other than VAR_EDGE_OK. What var_edge.h says about threads and callbacks
// holds here too; on_scale may throw, though, and its exception reaches the caller.
#ifndef VAR_EDGE_HPP
#define VAR_EDGE_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "var_edge.h"

namespace var_edge {

// A status other than VAR_EDGE_OK, with its message.
class Error : public std::runtime_error {
  public:
    explicit Error(var_edge_status code) : std::runtime_error(var_edge_last_error()), status(code) {}
    var_edge_status status;
};

// Throws Error unless the status is VAR_EDGE_OK.
inline void check(var_edge_status status) {
    if (status != VAR_EDGE_OK) throw Error(status);
}

// Options with the defaults.
struct Options : var_edge_options {
    Options() : var_edge_options() { var_edge_init_options(this, sizeof(var_edge_options)); }
};

// Settings with the defaults.
struct Settings : var_edge_settings {
    Settings() : var_edge_settings() { var_edge_init_settings(this, sizeof(var_edge_settings)); }
};

// Returns what a handle is of.
inline var_edge_info info_of(const var_edge_model* model) {
    var_edge_info info{};
    info.struct_size = sizeof info;
    check(var_edge_query(model, &info));
    return info;
}

// Returns the size in bytes of pictures (count, H, W, 3).
inline std::size_t picture_bytes(const var_edge_info& info, std::size_t count) {
    return count * std::size_t(info.image_size) * std::size_t(info.image_size) * 3;
}

// N pictures and their tokens.
struct Pictures {
    int32_t side = 0;
    int32_t count = 0;
    std::vector<uint8_t> images;  // (N, side, side, 3)
    std::vector<int32_t> tokens;  // (N, T)

    // Returns picture i, (side, side, 3).
    const uint8_t* image(int32_t i) const {
        return images.data() + std::size_t(i) * std::size_t(side) * std::size_t(side) * 3;
    }
};

// A scale that has just been drawn. Use it within on_scale only.
class Scale : public var_edge_scale {
  public:
    Scale(const var_edge_scale& scale, var_edge_model* model) : var_edge_scale(scale), model_(model) {}

    // Returns the pictures as they are after this scale, (pictures, H, W, 3). Runs a decoder once: the tiny one
    // if the bundle has it and this is not the last scale.
    std::vector<uint8_t> preview() const {
        std::vector<uint8_t> images(picture_bytes(info_of(model_), std::size_t(pictures)));
        check(var_edge_preview(model_, images.data()));
        return images;
    }

    // Returns the tokens of this scale, (pictures, side * side).
    std::vector<int32_t> tokens() const {
        std::vector<int32_t> found(count_of_tokens());
        check(var_edge_scale_tokens(model_, found.data()));
        return found;
    }

    // Returns the logits after guidance and before top_k and top_p, (pictures, side * side, V).
    std::vector<float> logits() const {
        std::vector<float> found(count_of_tokens() * std::size_t(info_of(model_).vocab_size));
        check(var_edge_scale_logits(model_, found.data()));
        return found;
    }

  private:
    std::size_t count_of_tokens() const { return std::size_t(pictures) * std::size_t(side) * std::size_t(side); }

    var_edge_model* model_;
};

// Is called after every scale of every batch; returns false to stop.
using OnScale = std::function<bool(const Scale&)>;

// A loaded model, which frees itself.
class Model {
  public:
    using Scale = var_edge::Scale;
    using OnScale = var_edge::OnScale;

    // Loads a bundle or a directory of engines.
    explicit Model(const std::string& directory, const Options& options = {}) {
        var_edge_model* model = nullptr;
        check(var_edge_create(directory.c_str(), &options, &model));
        model_.reset(model);
    }

    // Returns a second model that uses the same weights, for another thread.
    Model share() const {
        var_edge_model* other = nullptr;
        check(var_edge_share(model_.get(), &other));
        return Model(other);
    }

    // Returns what the model is. Its strings live as long as the model.
    var_edge_info info() const { return info_of(model_.get()); }

    // Returns the usual name of a class, or "" if it has none.
    std::string class_name(int32_t class_label) const {
        const char* name = var_edge_class_name(model_.get(), class_label);
        return name ? name : "";
    }

    // Returns the label that a text means: a class name, the beginning of one, or a number. See var_edge_find_label.
    int32_t label(const std::string& text) const {
        int32_t found = 0;
        check(var_edge_find_label(model_.get(), text.c_str(), &found));
        return found;
    }

    // Draws one picture for each label. Throws Error, and what `on_scale` throws.
    Pictures generate(const std::vector<int32_t>& labels, const Settings& settings = {}, const OnScale& on_scale = {}) {
        return drawn(labels, settings, on_scale, [&](const Settings& used, Pictures& out) {
            return var_edge_generate(model_.get(), labels.data(), out.count, &used, out.images.data(),
                                     out.tokens.data());
        });
    }

    // Draws a part of `image` (H, W, 3) anew, once for each label. `box` is {y0, x0, y1, x1}, as fractions of height
    // and width. Throws as generate does.
    Pictures edit(const std::vector<uint8_t>& image, const std::array<double, 4>& box, var_edge_mode mode,
                  const std::vector<int32_t>& labels, const Settings& settings = {}, const OnScale& on_scale = {}) {
        return edited(image, box.data(), nullptr, mode, labels, settings, on_scale);
    }

    // Does the same with a mask (H, W), which is not 0 inside the region.
    Pictures edit(const std::vector<uint8_t>& image, const std::vector<uint8_t>& mask, var_edge_mode mode,
                  const std::vector<int32_t>& labels, const Settings& settings = {}, const OnScale& on_scale = {}) {
        if (mask.size() * 3 != picture_bytes(info(), 1)) throw std::invalid_argument("edit: mask of another size");
        return edited(image, nullptr, mask.data(), mode, labels, settings, on_scale);
    }

    // Encodes images (count, H, W, 3) into tokens (count, T).
    std::vector<int32_t> encode(const std::vector<uint8_t>& images) {
        const var_edge_info about = info();
        const std::size_t count = images.size() / picture_bytes(about, 1);
        if (images.size() != picture_bytes(about, count)) {
            throw std::invalid_argument("encode: not a whole number of pictures");
        }
        std::vector<int32_t> tokens(count * std::size_t(about.tokens));
        check(var_edge_encode(model_.get(), images.data(), int32_t(count), tokens.data()));
        return tokens;
    }

    // Makes the running call throw Error with VAR_EDGE_STOPPED. Call it from another thread.
    void stop() { check(var_edge_stop(model_.get())); }

    // Returns the handle, for functions of var_edge.h.
    var_edge_model* get() const { return model_.get(); }

  private:
    explicit Model(var_edge_model* model) : model_(model) {}

    struct Call {
        const OnScale& on_scale;
        std::exception_ptr thrown;
    };

    static int call_back(var_edge_model* model, const var_edge_scale* scale, void* user) {
        auto& call = *static_cast<Call*>(user);
        try {
            return call.on_scale(Scale(*scale, model)) ? 0 : 1;
        } catch (...) {  // must not pass through C
            call.thrown = std::current_exception();
            return 1;
        }
    }

    // Calls `draw` with a result that has room for one picture of each label.
    template <typename Draw>
    Pictures drawn(const std::vector<int32_t>& labels, Settings settings, const OnScale& on_scale, Draw&& draw) {
        const var_edge_info about = info();
        Pictures result;
        result.side = about.image_size;
        result.count = int32_t(labels.size());
        result.images.resize(picture_bytes(about, labels.size()));
        result.tokens.resize(labels.size() * std::size_t(about.tokens));
        Call call{on_scale, nullptr};
        if (on_scale) {
            settings.on_scale = call_back;
            settings.user = &call;
        }
        const var_edge_status status = draw(settings, result);
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        return result;
    }

    Pictures edited(const std::vector<uint8_t>& image, const double* box, const uint8_t* mask, var_edge_mode mode,
                    const std::vector<int32_t>& labels, const Settings& settings, const OnScale& on_scale) {
        if (image.size() != picture_bytes(info(), 1)) throw std::invalid_argument("edit: image of another size");
        return drawn(labels, settings, on_scale, [&](const Settings& used, Pictures& out) {
            return var_edge_edit(model_.get(), image.data(), box, mask, mode, labels.data(), out.count, &used,
                                 out.images.data(), out.tokens.data());
        });
    }

    struct Free {
        void operator()(var_edge_model* model) const { var_edge_free(model); }
    };
    std::unique_ptr<var_edge_model, Free> model_;
};

}  // namespace var_edge

#endif
