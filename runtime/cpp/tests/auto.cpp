// auto DIR TENSORRT CUDA CPU: which backend VAR_EDGE_AUTO takes of a bundle if creating each one ends with this status.
// Prints its name, or the status that comes out. Compiled with src/backends/create.cpp as if both engines were there.
#include <cstdlib>
#include <iostream>

#include "backends/create.hpp"
#include "errors.hpp"

namespace var_edge_impl {

namespace {

int ends[3];  // with: TensorRT, CUDA, CPU

struct Named : std::exception {
    explicit Named(const char* one) : name(one) {}
    const char* name;
};

std::unique_ptr<Backend> created(int which) {
    constexpr const char* names[] = {"TensorRT", "CUDA", "CPU"};
    if (ends[which] == VAR_EDGE_OK) throw Named(names[which]);
    throw Error(var_edge_status(ends[which]), "as asked for");
}

}  // namespace

std::unique_ptr<Backend> create_tensorrt(const std::filesystem::path&, std::shared_ptr<const Manifest>,
                                         const BackendOptions&) {
    return created(0);
}

std::unique_ptr<Backend> create_onnxruntime(var_edge_backend wanted, const std::filesystem::path&,
                                            std::shared_ptr<const Manifest>, const BackendOptions&) {
    return created(wanted == VAR_EDGE_ONNXRUNTIME_CUDA ? 1 : 2);
}

}  // namespace var_edge_impl

int main(int count, char** arguments) {
    using namespace var_edge_impl;
    if (count != 5) return 2;
    for (int i = 0; i < 3; ++i) ends[i] = std::atoi(arguments[2 + i]);
    try {
        create_backend(VAR_EDGE_AUTO, arguments[1], nullptr, BackendOptions());
    } catch (const Named& backend) {
        std::cout << backend.name;
    } catch (const Error& error) {
        std::cout << error.status;
    }
}
