// One ONNX Runtime session: opened, checked against the manifest, bound to arrays. Twin of
// runtime/backends/ort_session.py.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "backends/base.hpp"
#include "backends/ort.hpp"
#include "backends/wiring.hpp"

namespace var_edge_impl {

// A graph bound to its arrays, ready to run.
class Bound {
  public:
    Bound(Ort::Session& session, const std::string& path, const Stage& stage);
    void run(const Ort::RunOptions& options);  // throws Error FAILED, OUT_OF_MEMORY

  private:
    Ort::Session* session_;
    std::string path_;
    Ort::IoBinding binding_;
    std::vector<Ort::Value> values_;
};

// A graph of a bundle. Throws Error BAD_BUNDLE if the file is not what the manifest says.
class Session {
  public:
    Session(const std::filesystem::path& bundle, const GraphSpec& graph, const Ort::SessionOptions& options);

    // Throws Error BAD_BUNDLE unless the graph takes the stage's arrays.
    void check(const Stage& stage) const;

    Bound bind(const Stage& stage);

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
    Ort::Session session_{nullptr};
    Specs inputs_, outputs_;
};

// The options of every session of a backend. `log` outlives the sessions. Throws Error UNSUPPORTED if this ONNX Runtime
// lacks the execution provider.
Ort::SessionOptions session_options(var_edge_backend wanted, const BackendOptions& asked, Log& log);

}  // namespace var_edge_impl
