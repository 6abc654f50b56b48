#include "backends/create.hpp"

#include "bundle/engine_record.hpp"
#include "errors.hpp"
#include "files/fingerprint.hpp"

namespace var_edge_impl {

namespace {

std::unique_ptr<Backend> onnxruntime([[maybe_unused]] var_edge_backend wanted,
                                     [[maybe_unused]] const std::filesystem::path& bundle,
                                     [[maybe_unused]] std::shared_ptr<const Manifest> manifest,
                                     [[maybe_unused]] const BackendOptions& options) {
#ifdef VAR_EDGE_WITH_ONNXRUNTIME
    return create_onnxruntime(wanted, bundle, manifest, options);
#else
    throw unsupported("this library was built without ONNX Runtime; build it with -DVAR_EDGE_ONNXRUNTIME=ON");
#endif
}

std::unique_ptr<Backend> tensorrt([[maybe_unused]] const std::filesystem::path& bundle,
                                  [[maybe_unused]] std::shared_ptr<const Manifest> manifest,
                                  [[maybe_unused]] const BackendOptions& options) {
#ifdef VAR_EDGE_WITH_TENSORRT
    if (options.device > 0) {
        throw unsupported("device: the TensorRT backend uses GPU 0; choose it with CUDA_VISIBLE_DEVICES");
    }
    return create_tensorrt(bundle, manifest, options);
#else
    throw unsupported("this library was built without TensorRT; build it with -DVAR_EDGE_TENSORRT=ON");
#endif
}

// Whether AUTO may take another backend after this error, as in Python: only if the engines or the machine do not fit.
// After any other error, such as a lack of memory, another backend would fail too or hide a defect.
bool is_another_choice(const Error& error) {
    return error.status == VAR_EDGE_BAD_BUNDLE || error.status == VAR_EDGE_UNSUPPORTED;
}

}  // namespace

std::unique_ptr<Backend> create_backend(var_edge_backend wanted, const std::filesystem::path& bundle,
                                        std::shared_ptr<const Manifest> manifest, const BackendOptions& options) {
    switch (wanted) {
        case VAR_EDGE_TENSORRT: return tensorrt(bundle, manifest, options);
        case VAR_EDGE_ONNXRUNTIME:
        case VAR_EDGE_ONNXRUNTIME_CUDA: return onnxruntime(wanted, bundle, manifest, options);
        case VAR_EDGE_AUTO: break;
        default: throw bad_argument("backend: expected one of var_edge_backend, found " + std::to_string(int(wanted)));
    }
    const bool engines = is_file(bundle / ENGINE_RECORD);
    if (engines || !engine_folders(bundle).empty()) {
        try {
            return tensorrt(bundle, manifest, options);
        } catch (const Error& error) {
            if (engines || !is_another_choice(error)) throw;
            options.log(1, one_line(std::string("engines not used: ") + error.what()));
        }
    }
    try {
        return onnxruntime(VAR_EDGE_ONNXRUNTIME_CUDA, bundle, manifest, options);
    } catch (const Error& error) {
        if (!is_another_choice(error)) throw;
        options.log(0, one_line(std::string("GPU not used: ") + error.what()));
    }
    return onnxruntime(VAR_EDGE_ONNXRUNTIME, bundle, manifest, options);
}

}  // namespace var_edge_impl
