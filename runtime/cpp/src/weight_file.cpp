#include "weight_file.hpp"

#include <array>
#include <fstream>

#include "error.hpp"
#include "files.hpp"
#include "strict.hpp"

namespace var_edge_impl {

namespace {

constexpr std::int64_t LARGEST_HEADER = 100'000'000;  // bytes; what the format allows
const std::map<std::string, std::pair<Dtype, std::int64_t>> DTYPES = {
    {"F32", {Dtype::float32, 4}}, {"F16", {Dtype::float16, 2}}, {"I64", {Dtype::int64, 8}},
    {"I32", {Dtype::int32, 4}},   {"U8", {Dtype::uint8, 1}},    {"BOOL", {Dtype::boolean, 1}}};

}  // namespace

std::map<std::string, StoredTensor> parse_weight_header(const std::string& text, std::int64_t data_bytes,
                                                        const std::string& where) {
    const nlohmann::json document = parse_json(text, where);
    std::map<std::string, StoredTensor> tensors;
    for (const auto& [name, entry] : Strict(document, where).members()) {
        if (name == "__metadata__") continue;
        entry.with({"dtype", "shape", "data_offsets"});
        const auto offsets = entry["data_offsets"].integers();
        const StoredTensor tensor{entry["dtype"].string(), entry["shape"].integers(), offsets.empty() ? -1 : offsets[0],
                                  offsets.size() == 2 ? offsets[1] : -1};
        if (tensor.begin < 0 || tensor.end < tensor.begin || tensor.end > data_bytes) {
            throw entry["data_offsets"].wrong("two offsets within " + std::to_string(data_bytes) + " bytes");
        }
        tensors.emplace(name, tensor);
    }
    return tensors;
}

WeightFile::WeightFile(const std::filesystem::path& path) : path_(path) {
    std::ifstream file(path, std::ios::binary);
    std::array<std::uint8_t, 8> raw{};
    const std::int64_t size = file_bytes(path);
    const std::string problem = path.string() + ": no safetensors file; export the bundle again";
    if (!file.read(reinterpret_cast<char*>(raw.data()), raw.size())) throw bad_bundle(problem);
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | raw[std::size_t(i)];
    if (length > std::uint64_t(LARGEST_HEADER) || std::int64_t(length) > size - 8) throw bad_bundle(problem);
    std::string text(length, '\0');
    if (!file.read(text.data(), std::streamsize(length))) throw bad_bundle(problem);
    data_start_ = 8 + std::int64_t(length);
    tensors_ = parse_weight_header(text, size - data_start_, path.string());
}

HostTensor WeightFile::read(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw bad_bundle(path_.string() + ": has no tensor " + name + "; export the bundle again");
    const StoredTensor& stored = found->second;
    const auto dtype = DTYPES.find(stored.dtype);
    if (dtype == DTYPES.end()) throw bad_bundle(path_.string() + ": " + name + ": unexpected dtype " + stored.dtype);
    std::int64_t bytes = dtype->second.second;
    for (std::int64_t axis : stored.shape) {
        if (axis < 0 || __builtin_mul_overflow(bytes, axis, &bytes)) bytes = -1;
        if (bytes < 0) break;
    }
    if (bytes != stored.end - stored.begin) throw bad_bundle(path_.string() + ": " + name + ": its shape and its size differ");
    HostTensor tensor{stored.shape, dtype->second.first, std::vector<std::uint8_t>(std::size_t(bytes))};
    std::ifstream file(path_, std::ios::binary);
    file.seekg(data_start_ + stored.begin);
    if (!file.read(reinterpret_cast<char*>(tensor.data.data()), bytes)) throw bad_bundle(path_.string() + ": cannot be read");
    return tensor;
}

}  // namespace var_edge_impl
