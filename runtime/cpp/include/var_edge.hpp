// VAR Edge for C++17: the C API of var_edge.h with exceptions and owned buffers. Header only.
//
//     var_edge::Model model("build/var_d16/fp32");
//     var_edge::Settings settings;
//     settings.seed = 7;
//     var_edge::Pictures pictures = model.generate({207, 980}, settings);
//     pictures.image(0);  // (H, W, 3) bytes
#ifndef VAR_EDGE_HPP
#define VAR_EDGE_HPP

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "var_edge.h"

namespace var_edge {

// What a call returned, with its message.
class Error : public std::runtime_error {
  public:
    explicit Error(var_edge_status code) : std::runtime_error(var_edge_last_error()), status(code) {}
    var_edge_status status;
};

inline void check(var_edge_status status) {
    if (status != VAR_EDGE_OK) throw Error(status);
}

struct Options : var_edge_options {
    Options() { var_edge_default_options(this); }
};

struct Settings : var_edge_settings {
    Settings() { var_edge_default_settings(this); }
};

// N pictures and their tokens.
struct Pictures {
    int32_t side = 0;
    int32_t count = 0;
    std::vector<uint8_t> images;  // (N, side, side, 3)
    std::vector<int32_t> tokens;  // (N, T)

    const uint8_t* image(int32_t i) const { return images.data() + std::size_t(i) * side * side * 3; }
};

class Model {
  public:
    // Within a generation: what has been drawn so far.
    class Scale : public var_edge_scale {
      public:
        Scale(const var_edge_scale& scale, var_edge_model* model, int32_t side) : var_edge_scale(scale), model_(model), side_(side) {}

        // (pictures, side, side, 3) bytes. Costs a run of the decoder.
        std::vector<uint8_t> preview() const {
            std::vector<uint8_t> images(std::size_t(pictures) * side_ * side_ * 3);
            check(var_edge_preview(model_, images.data()));
            return images;
        }

      private:
        var_edge_model* model_;
        int32_t side_;
    };
    using OnScale = std::function<bool(const Scale&)>;  // false stops the generation

    explicit Model(const std::string& directory, const Options& options = {}) {
        var_edge_model* model = nullptr;
        check(var_edge_create(directory.c_str(), &options, &model));
        model_.reset(model);
    }

    var_edge_info info() const {
        var_edge_info info;
        info.struct_size = sizeof info;
        check(var_edge_query(model_.get(), &info));
        return info;
    }

    // Empty if the class has no name.
    std::string class_name(int32_t label) const {
        const char* name = var_edge_class_name(model_.get(), label);
        return name ? name : "";
    }

    // Throws Error, and what `on_scale` throws.
    Pictures generate(const std::vector<int32_t>& labels, Settings settings = {}, const OnScale& on_scale = {}) {
        Pictures result = room_for(labels.size());
        Call call{on_scale, result.side, nullptr};
        if (on_scale) {
            settings.on_scale = [](var_edge_model* model, const var_edge_scale* scale, void* user) {
                auto& self = *static_cast<Call*>(user);
                try {
                    return self.on_scale(Scale(*scale, model, self.side)) ? 0 : 1;
                } catch (...) {  // must not pass through C
                    self.thrown = std::current_exception();
                    return 1;
                }
            };
            settings.user = &call;
        }
        const var_edge_status status = var_edge_generate(model_.get(), labels.data(), result.count, &settings,
                                                         result.images.data(), result.tokens.data());
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        return result;
    }

    // A part of `image` (side, side, 3), the box y0, x0, y1, x1 in shares of it, drawn anew once for each label.
    Pictures edit(const std::vector<uint8_t>& image, const std::array<double, 4>& box, var_edge_mode mode,
                  const std::vector<int32_t>& labels, const Settings& settings = {}) {
        Pictures result = room_for(labels.size());
        if (image.size() * labels.size() != result.images.size()) throw std::invalid_argument("edit: image of another size");
        check(var_edge_edit(model_.get(), image.data(), box.data(), nullptr, mode, labels.data(), result.count, &settings,
                            result.images.data(), result.tokens.data()));
        return result;
    }

    // images (count, side, side, 3) -> tokens (count, T).
    std::vector<int32_t> encode(const std::vector<uint8_t>& images) {
        const var_edge_info about = info();
        const std::size_t picture = std::size_t(about.image_size) * about.image_size * 3;
        if (images.size() % picture) throw std::invalid_argument("encode: not a whole number of pictures");
        std::vector<int32_t> tokens(images.size() / picture * about.tokens);
        check(var_edge_encode(model_.get(), images.data(), int32_t(images.size() / picture), tokens.data()));
        return tokens;
    }

    var_edge_model* get() const { return model_.get(); }

  private:
    Pictures room_for(std::size_t count) const {
        const var_edge_info about = info();
        Pictures pictures;
        pictures.side = about.image_size;
        pictures.count = int32_t(count);
        pictures.images.resize(count * std::size_t(about.image_size) * std::size_t(about.image_size) * 3);
        pictures.tokens.resize(count * std::size_t(about.tokens));
        return pictures;
    }

    struct Call {
        const OnScale& on_scale;
        int32_t side;
        std::exception_ptr thrown;
    };
    struct Free {
        void operator()(var_edge_model* model) const { var_edge_free(model); }
    };
    std::unique_ptr<var_edge_model, Free> model_;
};

}  // namespace var_edge

#endif
