#include "manifest.hpp"

#include <algorithm>
#include <array>

#include "files.hpp"
#include "strict.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

constexpr std::array<const char*, 6> DTYPES = {"float32", "float16", "int64", "int32", "uint8", "bool"};
const std::set<std::string> SYMBOLS = {"B", "2B", "L", "L_next", "S"};
constexpr std::int64_t LARGEST = 1 << 20;  // of a model's sizes: products of a few of them stay below 2**63

void expect(bool holds, const std::string& where, const std::string& expected, const std::string& found) {
    if (!holds) throw bad_bundle(where + ": expected " + expected + "; found " + found);
}

std::string listed(const std::vector<std::int64_t>& numbers) {
    std::string text = "[";
    for (std::int64_t number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
    return text + "]";
}

Model parse_model(const Strict& s) {
    s.with({"name", "depth", "width", "heads", "vocab_size", "code_size", "num_classes", "patch_nums", "image_size", "ch",
            "ch_mult", "num_res_blocks", "shared_aln", "attn_l2_norm"});
    Model model;
    model.name = s["name"].string();
    model.depth = s["depth"].integer();
    model.width = s["width"].integer();
    model.heads = s["heads"].integer();
    model.vocab_size = s["vocab_size"].integer();
    model.code_size = s["code_size"].integer();
    model.num_classes = s["num_classes"].integer();
    model.patch_nums = s["patch_nums"].integers();
    model.image_size = s["image_size"].integer();
    model.ch = s["ch"].integer();
    model.ch_mult = s["ch_mult"].integers();
    model.num_res_blocks = s["num_res_blocks"].integer();
    model.shared_aln = s["shared_aln"].boolean();
    model.attn_l2_norm = s["attn_l2_norm"].boolean();
    return model;
}

Scale parse_scale(const Strict& s) {
    s.with({"side", "tokens", "offset", "phi", "upsample", "downsample"});
    return {s["side"].integer(),      s["tokens"].integer(),  s["offset"].integer(),
            s["phi"].integer(),       s["upsample"].string(), s["downsample"].string_or_null()};
}

TensorSpec parse_tensor(const Strict& s) {
    s.with({"name", "dtype", "shape"});
    TensorSpec tensor{s["name"].string(), Dtype::float32, {}};
    const std::string dtype = s["dtype"].string();
    const auto found = std::find(DTYPES.begin(), DTYPES.end(), dtype);
    if (found == DTYPES.end()) throw s["dtype"].wrong("a dtype out of float32, float16, int64, int32, uint8, bool");
    tensor.dtype = Dtype(found - DTYPES.begin());
    for (const Strict& axis : s["shape"].list()) {
        const std::string wanted = "a number from 0 up or B, 2B, L, L_next, S";
        if (axis.is_string()) {
            if (!SYMBOLS.count(axis.string())) throw axis.wrong(wanted);
            tensor.shape.emplace_back(axis.string());
        } else {
            if (axis.integer() < 0) throw axis.wrong(wanted);
            tensor.shape.emplace_back(axis.integer());
        }
    }
    return tensor;
}

std::vector<TensorSpec> parse_tensors(const Strict& s) {
    std::vector<TensorSpec> tensors;
    for (const Strict& item : s.list()) tensors.push_back(parse_tensor(item));
    return tensors;
}

GraphSpec parse_graph(const Strict& s) {
    s.with({"file", "inputs", "outputs"});
    return {s["file"].string(), parse_tensors(s["inputs"]), parse_tensors(s["outputs"])};
}

FileSpec parse_file(const Strict& s) {
    s.with({"size", "sha256"});
    return {s["size"].integer(), s["sha256"].string()};
}

void check_provenance(const Strict& s) {
    s.with({"created", "source", "tools", "options"});
    s["created"].string();
    s["source"].members();
    for (const auto& [_, version] : s["tools"].members()) version.string();
    s["options"].members();
}

}  // namespace

std::size_t item_size(Dtype dtype) {
    constexpr std::array<std::size_t, 6> sizes = {4, 2, 8, 4, 1, 1};
    return sizes.at(std::size_t(dtype));
}

const char* dtype_name(Dtype dtype) { return DTYPES.at(std::size_t(dtype)); }

std::int64_t Model::tokens() const {
    std::int64_t sum = 0;
    for (std::int64_t side : patch_nums) sum += side * side;
    return sum;
}

Manifest Manifest::parse(const std::string& text, const std::string& where) {
    const nlohmann::json document = parse_json(text, where);
    check_schema(document, SCHEMA_VERSION, where, "export the bundle again");
    const Strict s(document, where);
    s.with({"schema_version", "model", "precision", "classes", "scales", "step_constants", "graphs", "files", "provenance"});
    Manifest manifest;
    manifest.model = parse_model(s["model"]);
    manifest.precision = s["precision"].string();
    manifest.classes = s["classes"].string_or_null();
    for (const Strict& scale : s["scales"].list()) manifest.scales.push_back(parse_scale(scale));
    for (const Strict& name : s["step_constants"].list()) manifest.step_constants.push_back(name.string());
    for (const auto& [name, graph] : s["graphs"].members()) manifest.graphs.emplace(name, parse_graph(graph));
    for (const auto& [name, file] : s["files"].members()) manifest.files.emplace(name, parse_file(file));
    check_provenance(s["provenance"]);
    manifest.check(where);
    return manifest;
}

Manifest Manifest::load(const fs::path& bundle, bool verify, const Progress& progress) {
    const fs::path path = bundle / MANIFEST;
    if (!is_file(path)) throw bad_bundle(bundle.string() + ": no " + MANIFEST + ", so not a bundle; make onnx makes one");
    Manifest manifest = parse(read_file(path), path.string());
    manifest.check_files(bundle, verify, progress);
    return manifest;
}

std::set<std::string> Manifest::runtime_tensors() const {
    std::set<std::string> names(step_constants.begin(), step_constants.end());
    for (const Scale& scale : scales) {
        names.insert(scale.upsample);
        if (scale.downsample) names.insert(*scale.downsample);
    }
    return names;
}

void Manifest::check(const std::string& where) const {
    check_model(where);
    check_scales(where);
    check_names(where);
}

void Manifest::check_model(const std::string& where) const {
    std::vector<std::int64_t> sizes = {model.depth,       model.width,      model.heads, model.vocab_size, model.code_size,
                                       model.num_classes, model.image_size, model.ch,    model.num_res_blocks};
    sizes.insert(sizes.end(), model.patch_nums.begin(), model.patch_nums.end());
    sizes.insert(sizes.end(), model.ch_mult.begin(), model.ch_mult.end());
    const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
    expect(*least > 0 && *most <= LARGEST, where + ".model", "sizes from 1 to 2**20", listed(sizes));
    const auto& sides = model.patch_nums;
    const bool growing = sides.size() > 1 && std::adjacent_find(sides.begin(), sides.end(), std::greater_equal<>()) == sides.end();
    expect(growing, where + ".model.patch_nums", "two or more growing sides", listed(sides));
    expect(sides.size() <= 64 && model.ch_mult.size() <= 16 && !model.ch_mult.empty() && sides.back() <= 1024,
           where + ".model", "at most 64 scales, sides up to 1024 and 1 to 16 ch_mult", listed(sides));
    const std::int64_t image_size = model.grid() << (model.ch_mult.size() - 1);
    for (const auto& [key, found, size] : {std::tuple{"width", model.width, 64 * model.heads}, {"image_size", model.image_size, image_size}}) {
        expect(found == size, where + ".model." + key, std::to_string(size) + ", as the other sizes say", std::to_string(found));
    }
}

void Manifest::check_scales(const std::string& where) const {
    std::vector<std::int64_t> found;
    for (const Scale& scale : scales) found.push_back(scale.side);
    expect(found == model.patch_nums, where + ".scales", "the sides " + listed(model.patch_nums), listed(found));
    std::int64_t offset = 0;
    for (std::size_t k = 0; k < scales.size(); ++k) {
        const Scale& scale = scales[k];
        const std::string place = where + ".scales[" + std::to_string(k) + "]";
        const std::vector<std::int64_t> expected = {scale.side * scale.side, offset};
        expect(scale.tokens == expected[0] && scale.offset == offset, place, "tokens, offset " + listed(expected),
               listed({scale.tokens, scale.offset}));
        expect(scale.downsample.has_value() == (k > 0), place + ".downsample", k ? "the name of a tensor" : "null",
               scale.downsample.value_or("null"));
        offset += scale.tokens;
    }
}

void Manifest::check_names(const std::string& where) const {
    for (const auto& [name, _] : files) {
        const bool plain = !name.empty() && name != "." && name != ".." && name != MANIFEST &&
                           name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
        expect(plain, where + ".files", "plain names of other files", name);
    }
    for (const std::string& name : REQUIRED_GRAPHS) expect(graphs.count(name), where + ".graphs", name, "none");
    std::vector<std::string> used = {WEIGHTS};
    if (classes) used.push_back(*classes);
    for (const auto& [_, graph] : graphs) used.push_back(graph.file);
    for (const std::string& name : used) expect(files.count(name), where + ".files", name + ", which the bundle uses", "none");
    for (const std::string& name : step_constants) {
        const auto& inputs = graphs.at("transformer").inputs;
        const bool known = std::any_of(inputs.begin(), inputs.end(), [&](const TensorSpec& input) { return input.name == name; });
        expect(known, where + ".step_constants", "inputs of the transformer", name);
    }
}

void Manifest::check_files(const fs::path& bundle, bool verify, const Progress& progress) const {
    std::uint64_t done = 0, total = 0;
    for (const auto& [_, expected] : files) total += std::uint64_t(expected.size);
    for (const auto& [name, expected] : files) {
        const fs::path path = bundle / name;
        if (!is_file(path)) throw bad_bundle(path.string() + ": missing; copy the whole bundle again");
        const std::int64_t size = file_bytes(path);
        if (size != expected.size) {
            throw bad_bundle(path.string() + ": expected " + std::to_string(expected.size) + " bytes, found " +
                             std::to_string(size) + "; copy the whole bundle again");
        }
        if (!verify) continue;
        const std::string digest = sha256(path, [&, file = name.c_str()](std::size_t bytes) {
            done += bytes;
            if (progress) progress(VAR_EDGE_CHECKING, file, done, total);
        });
        if (digest != expected.sha256) {
            throw bad_bundle(path.string() + ": altered: expected SHA-256 " + expected.sha256.substr(0, 12) + "…, found " +
                             digest.substr(0, 12) + "…; copy the whole bundle again");
        }
    }
}

}  // namespace var_edge_impl
