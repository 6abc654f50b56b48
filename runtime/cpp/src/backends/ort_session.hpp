// One ONNX Runtime session: opened, checked against the manifest, bound to arrays. Twin of
// runtime/backends/ort_session.py.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backends/base.hpp"
#include "backends/ort.hpp"
#include "backends/ort_cuda.hpp"
#include "backends/wiring.hpp"

namespace var_edge_impl {

// A graph bound to its arrays, ready to run.
class Bound {
  public:
    // `provider`: null if the session runs on the CPU.
    Bound(Ort::Session& session, const std::string& path, const Stage& stage, const CudaProvider* provider);
    void run(const Ort::RunOptions& options);  // throws Error FAILED, OUT_OF_MEMORY

  private:
    Ort::Session* session_;
    std::string path_;
    Ort::IoBinding binding_;
    std::vector<Ort::Value> values_;
    std::vector<std::pair<std::string, std::size_t>> copied_;  // inputs to bind again for every run, with their values
};

// A graph of a bundle. Throws Error BAD_BUNDLE if the file is not what the manifest says.
class Session {
  public:
    // `provider`, if not null, is in the options, and outlives the session.
    Session(const std::filesystem::path& bundle, const GraphSpec& graph, const Ort::SessionOptions& options,
            const CudaProvider* provider);

    // Throws Error BAD_BUNDLE unless the graph takes the stage's arrays.
    void check(const Stage& stage) const;

    Bound bind(const Stage& stage);

    const Ort::Session& get() const { return session_; }

    // What the graph or the manifest says of a tensor.
    struct Spec {
        ONNXTensorElementDataType type;
        Shape shape;  // -1: any size
        bool fits(const Spec& other) const;
    };
    using Specs = std::map<std::string, Spec>;

  private:
    void add(Specs& specs, const std::string& name, const Ort::TypeInfo& type) const;
    void agree(const char* other, const Specs& expected, const Specs& found) const;

    std::string path_;
    const CudaProvider* provider_;
    Ort::Session session_{nullptr};
    Specs inputs_, outputs_;
};

// The options of every session of a backend, without an execution provider. With `exact`, INT8 products are exact on
// every processor, at the speed of FP32. `log` outlives the sessions.
Ort::SessionOptions session_options(const BackendOptions& asked, bool exact, Log& log);

}  // namespace var_edge_impl
