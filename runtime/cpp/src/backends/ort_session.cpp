#include "backends/ort_session.hpp"

#include <algorithm>
#include <string_view>

#include "errors.hpp"
#include "runtime/processors.hpp"

namespace var_edge_impl {

namespace {

using Specs = Session::Specs;

Specs declared(const std::vector<TensorSpec>& tensors) {
    Specs specs;
    for (const TensorSpec& tensor : tensors) {
        Session::Spec& spec = specs[tensor.name] = {element_type(tensor.dtype), {}};
        for (const Axis& axis : tensor.shape) {
            spec.shape.push_back(std::holds_alternative<std::int64_t>(axis) ? std::get<std::int64_t>(axis) : -1);
        }
    }
    return specs;
}

Specs of(const Tensors& tensors) {
    Specs specs;
    for (const auto& [name, array] : tensors) specs[name] = {element_type(array.dtype), array.shape};
    return specs;
}

// Passes a message of ONNX Runtime, from any thread, to the caller's log.
void ORT_API_CALL hear(void* log, OrtLoggingLevel severity, const char*, const char*, const char* place,
                       const char* message) {
    const int level = std::min(int(severity) - int(ORT_LOGGING_LEVEL_INFO), int(VAR_EDGE_LOG_ERROR));
    try {
        (*static_cast<Log*>(log))(level, one_line(std::string("ONNX Runtime: ") + message + " (" + place + ")"));
    } catch (...) {  // ONNX Runtime cannot handle an exception of the caller's log
    }
}

OrtLoggingLevel severity(int level) {
    return OrtLoggingLevel(
        std::clamp(level + int(ORT_LOGGING_LEVEL_INFO), int(ORT_LOGGING_LEVEL_VERBOSE), int(ORT_LOGGING_LEVEL_FATAL)));
}

}  // namespace

// With a GPU, ONNX Runtime copies an input that the graph does not read where it lies, and it does so when the input is
// bound, not when the graph runs. So all but the constants are bound again for every run. The copy is only queued, on a
// stream that the run need not have if another thread uses the session too: it must be waited for.
Bound::Bound(Ort::Session& session, const std::string& path, const Stage& stage, const CudaProvider* provider)
    : session_(&session), path_(path), binding_(session) {
    const auto host = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    for (const auto* tensors : {&stage.inputs, &stage.outputs}) {
        for (const auto& [name, array] : *tensors) {
            const auto* memory =
                array.place == Place::device ? static_cast<const OrtMemoryInfo*>(provider->memory()) : host;
            values_.push_back(Ort::Value::CreateTensor(memory, array.data, array.bytes(), array.shape.data(),
                                                       array.shape.size(), element_type(array.dtype)));
            if (tensors == &stage.outputs) binding_.BindOutput(name.c_str(), values_.back());
            else if (provider && array.place != Place::constant) copied_.emplace_back(name, values_.size() - 1);
            else binding_.BindInput(name.c_str(), values_.back());
        }
    }
    if (provider) binding_.SynchronizeInputs();
}

void Bound::run(const Ort::RunOptions& options) {
    try {
        for (const auto& [name, value] : copied_) binding_.BindInput(name.c_str(), values_[value]);
        if (!copied_.empty()) binding_.SynchronizeInputs();
        session_->Run(options, binding_);
    } catch (const Ort::Exception& error) {
        throw engine_error(VAR_EDGE_FAILED, path_ + ": ONNX Runtime failed", error.what());
    }
}

bool Session::Spec::fits(const Spec& other) const {
    const auto agree = [](std::int64_t a, std::int64_t b) { return a == b || a < 0 || b < 0; };
    return type == other.type && std::equal(shape.begin(), shape.end(), other.shape.begin(), other.shape.end(), agree);
}

Session::Session(const std::filesystem::path& bundle, const GraphSpec& graph, const Ort::SessionOptions& options,
                 const CudaProvider* provider)
    : path_((bundle / graph.file).string()), provider_(provider) {
    try {
        session_ = Ort::Session(environment(), path_.c_str(), options);
    } catch (const Ort::Exception& error) {
        // Without a GPU or a driver the provider fails only here, and only the text says that it is not the graph.
        const bool no_gpu = std::string_view(error.what()).find("CUDA failure") != std::string_view::npos;
        throw engine_error(no_gpu ? VAR_EDGE_UNSUPPORTED : VAR_EDGE_BAD_BUNDLE,
                           path_ + ": ONNX Runtime " + Ort::GetVersionString() + " cannot load it", error.what());
    }
    const Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
        add(inputs_, session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i));
    }
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
        add(outputs_, session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i));
    }
    agree("manifest", declared(graph.inputs), inputs_);
    agree("manifest", declared(graph.outputs), outputs_);
}

void Session::check(const Stage& stage) const {
    agree("runtime", of(stage.inputs), inputs_);
    agree("runtime", of(stage.outputs), outputs_);
}

Bound Session::bind(const Stage& stage) {
    check(stage);
    try {
        return {session_, path_, stage, provider_};
    } catch (const Ort::Exception& error) {  // it copies constants to the GPU
        throw engine_error(VAR_EDGE_FAILED, path_ + ": ONNX Runtime cannot bind it", error.what());
    }
}

// A sequence or an optional has no element type to ask for.
void Session::add(Specs& specs, const std::string& name, const Ort::TypeInfo& type) const {
    if (type.GetONNXType() != ONNX_TYPE_TENSOR) {
        throw bad_bundle(path_ + ": " + name + ": expected a tensor; export the bundle again");
    }
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    specs[name] = {tensor.GetElementType(), tensor.GetShape()};
}

void Session::agree(const char* other, const Specs& expected, const Specs& found) const {
    std::string differing;
    const auto note = [&](const std::string& name) { differing += (differing.empty() ? "" : ", ") + name; };
    for (const auto& [name, spec] : expected) {
        if (const auto same = found.find(name); same == found.end() || !same->second.fits(spec)) note(name);
    }
    for (const auto& [name, _] : found) {
        if (!expected.count(name)) note(name);
    }
    if (!differing.empty()) {
        throw bad_bundle(path_ + ": " + differing + ": the graph and the " + other +
                         " differ in name, dtype or shape; export the bundle again");
    }
}

Ort::SessionOptions session_options(const BackendOptions& asked, bool exact, Log& log) {
    environment();  // before any other call of ONNX Runtime's
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(asked.threads ? asked.threads : usable_cpus());
    // The graphs run one after the other: idle threads of one session that keep spinning would slow down the next.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    // A pattern would be kept for every shape, that is for every scale: memory without a gain in speed.
    options.DisableMemPattern();
    // INT8 weights alone: by default ONNX Runtime rounds the activations to 8 bits as well.
    options.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", "1");
    // Q/DQ stays rounding around FP32 products: on AVX2 without VNNI the INT8 kernels saturate with 8-bit weights.
    if (exact) options.AddConfigEntry("session.disable_quant_qdq", "1");
    options.SetLogSeverityLevel(severity(asked.log_level));
    Ort::ThrowOnError(Ort::GetApi().SetUserLoggingFunction(options, hear, &log));
    return options;
}

}  // namespace var_edge_impl
