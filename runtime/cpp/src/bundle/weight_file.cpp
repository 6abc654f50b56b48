#include "bundle/weight_file.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include <nlohmann/json.hpp>

#include "bundle/schema.hpp"
#include "errors.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace {

// What the format knows, and what the runtime reads of it.
struct Stored {
    std::string_view name;
    std::int64_t bytes;
    std::optional<Dtype> dtype;
};
constexpr Stored DTYPES[] = {{"F32", 4, Dtype::float32},
                             {"F16", 2, Dtype::float16},
                             {"I64", 8, Dtype::int64},
                             {"I32", 4, Dtype::int32},
                             {"U8", 1, Dtype::uint8},
                             {"BOOL", 1, Dtype::boolean},
                             {"I8", 1, {}},
                             {"F8_E5M2", 1, {}},
                             {"F8_E4M3", 1, {}},
                             {"I16", 2, {}},
                             {"U16", 2, {}},
                             {"BF16", 2, {}},
                             {"U32", 4, {}},
                             {"F64", 8, {}},
                             {"U64", 8, {}}};

const Stored* stored(const std::string& dtype) {
    const auto found =
        std::find_if(std::begin(DTYPES), std::end(DTYPES), [&](const Stored& one) { return one.name == dtype; });
    return found == std::end(DTYPES) ? nullptr : found;
}

// Of a tensor; -1 if more than 63 bits hold.
std::int64_t bytes_of(const Stored& dtype, const Shape& shape) {
    if (std::count(shape.begin(), shape.end(), 0)) return 0;
    std::int64_t bytes = dtype.bytes;
    for (std::int64_t axis : shape) {
        if (__builtin_mul_overflow(bytes, axis, &bytes)) return -1;
    }
    return bytes;
}

StoredTensor parse_entry(const Strict& entry, std::int64_t data_bytes) {
    entry.with({"dtype", "shape", "data_offsets"});
    const auto offsets = entry["data_offsets"].integers();
    const StoredTensor tensor{entry["dtype"].string(), entry["shape"].shape(), offsets.empty() ? -1 : offsets[0],
                              offsets.size() == 2 ? offsets[1] : -1};
    if (tensor.begin < 0 || tensor.end < tensor.begin || tensor.end > data_bytes) {
        throw entry["data_offsets"].wrong("two offsets within " + std::to_string(data_bytes) + " bytes");
    }
    const Stored* dtype = stored(tensor.dtype);
    if (!dtype) throw entry["dtype"].wrong("a dtype of the safetensors format");
    if (bytes_of(*dtype, tensor.shape) != tensor.end - tensor.begin) {
        throw entry["shape"].wrong("a shape of " + std::to_string(tensor.end - tensor.begin) + " bytes");
    }
    return tensor;
}

}  // namespace

std::map<std::string, StoredTensor> parse_weight_header(const std::string& text, std::int64_t data_bytes,
                                                        const std::string& where) {
    const nlohmann::json document = parse_json(text, where + ": header");
    std::map<std::string, StoredTensor> tensors;
    std::vector<std::pair<std::int64_t, std::int64_t>> spans;
    for (const auto& [name, entry] : Strict(document, where + ": header").named(SIZE_MAX)) {
        if (name == "__metadata__") {
            for (const auto& [_, value] : entry.members(SIZE_MAX)) value.string();
            continue;
        }
        const StoredTensor& tensor = tensors.emplace(name, parse_entry(entry, data_bytes)).first->second;
        spans.emplace_back(tensor.begin, tensor.end);
    }
    std::sort(spans.begin(), spans.end());
    std::int64_t end = 0;
    for (const auto& [begin, stop] : spans) {
        if (begin != end) {
            throw bad_bundle(where + ": tensors overlap or leave a gap at byte " +
                             std::to_string(std::min(begin, end)));
        }
        end = stop;
    }
    if (end != data_bytes) {
        throw bad_bundle(where + ": expected tensors of " + std::to_string(data_bytes) + " bytes, found " +
                         std::to_string(end) + "; copy it again");
    }
    return tensors;
}

WeightFile::WeightFile(const std::filesystem::path& path) : path_(path.string()), file_(path) {
    std::array<std::uint8_t, 8> raw{};
    const std::string problem = path_ + ": not a safetensors file; export the bundle again";
    if (file_.read_some(raw.data(), raw.size(), 0) != raw.size()) throw bad_bundle(problem);
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | raw[std::size_t(i)];
    if (length > std::uint64_t(limits::HEADER_BYTES) || std::int64_t(length) > file_.size() - 8) {
        throw bad_bundle(problem);
    }
    std::string text(length, '\0');
    file_.read(text.data(), length, 8);
    data_start_ = 8 + std::int64_t(length);
    tensors_ = parse_weight_header(text, file_.size() - data_start_, path_);
}

const StoredTensor& WeightFile::at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw bad_bundle(path_ + ": has no tensor " + name + "; export the bundle again");
    return found->second;
}

HostTensor WeightFile::read(const std::string& name) const {
    const StoredTensor& tensor = at(name);
    const std::optional<Dtype> dtype = stored(tensor.dtype)->dtype;
    if (!dtype) throw bad_bundle(path_ + ": " + name + ": unexpected dtype " + tensor.dtype);
    HostTensor read{tensor.shape, *dtype, std::vector<std::uint8_t>(std::size_t(tensor.end - tensor.begin))};
    file_.read(read.data.data(), read.data.size(), data_start_ + tensor.begin);
    return read;
}

}  // namespace var_edge_impl
