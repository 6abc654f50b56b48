// The backend that a caller asks for. Twin of runtime/backends/__init__.py.
#pragma once

#include <filesystem>
#include <memory>

#include "backends/base.hpp"

namespace var_edge_impl {

// Returns the backend that is asked for, never another. AUTO takes TensorRT if there are engines for this machine, else
// ONNX Runtime. `manifest` is the bundle's; a backend that runs engines has the manifest of their directory.
std::unique_ptr<Backend> create_backend(var_edge_backend wanted, const std::filesystem::path& bundle,
                                        std::shared_ptr<const Manifest> manifest, const BackendOptions& options);

#ifdef VAR_EDGE_WITH_ONNXRUNTIME
std::unique_ptr<Backend> create_onnxruntime(var_edge_backend wanted, const std::filesystem::path& bundle,
                                            std::shared_ptr<const Manifest> manifest, const BackendOptions& options);
#endif
#ifdef VAR_EDGE_WITH_TENSORRT
std::unique_ptr<Backend> create_tensorrt(const std::filesystem::path& bundle, std::shared_ptr<const Manifest> manifest,
                                         const BackendOptions& options);
#endif

}  // namespace var_edge_impl
