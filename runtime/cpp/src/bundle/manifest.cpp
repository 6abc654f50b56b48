#include "bundle/manifest.hpp"

#include <algorithm>
#include <array>

#include <nlohmann/json.hpp>

#include "bundle/schema.hpp"
#include "files/bounded.hpp"
#include "files/fingerprint.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

constexpr std::array<const char*, 6> DTYPES = {"float32", "float16", "int64", "int32", "uint8", "bool"};
constexpr std::array<const char*, 5> SYMBOLS = {"B", "2B", "L", "L_next", "S"};

void expect(bool holds, const std::string& where, const std::string& expected, const std::string& found) {
    if (!holds) throw bad_bundle(where + ": expected " + expected + "; found " + found);
}

std::string listed(const std::vector<std::int64_t>& numbers) {
    std::string text = "[";
    for (std::int64_t number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
    return text + "]";
}

std::vector<std::int64_t> parse_sizes(const Strict& s, const limits::Range& length, const limits::Range& each) {
    const std::vector<Strict> items = s.list();
    if (!length.holds(double(items.size()))) {
        throw s.wrong(number(length.least) + " to " + number(length.most) + " entries");
    }
    std::vector<std::int64_t> sizes;
    for (const Strict& item : items) sizes.push_back(item.integer(each));
    return sizes;
}

Model parse_model(const Strict& s) {
    s.with({"name",        "depth",        "width",      "heads",     "vocab_size", "code_size",
            "num_classes", "patch_nums",   "image_size", "ch",        "ch_mult",    "num_res_blocks",
            "shared_aln",  "attn_l2_norm", "norm_eps",   "mlp_ratio", "quant_resi", "share_quant_resi",
            "using_znorm", "quant_conv_ks"});
    Model model;
    model.name = s["name"].plain_name();
    model.depth = s["depth"].integer(limits::DEPTH);
    model.width = s["width"].integer(limits::WIDTH);
    model.heads = s["heads"].integer(limits::HEADS);
    model.vocab_size = s["vocab_size"].integer(limits::VOCAB_SIZE);
    model.code_size = s["code_size"].integer(limits::CODE_SIZE);
    model.num_classes = s["num_classes"].integer(limits::NUM_CLASSES);
    model.patch_nums = parse_sizes(s["patch_nums"], limits::SIDES, limits::SIDE);
    model.image_size = s["image_size"].integer(limits::IMAGE_SIZE);
    model.ch = s["ch"].integer(limits::CH);
    model.ch_mult = parse_sizes(s["ch_mult"], limits::MULTIPLIERS, limits::MULTIPLIER);
    model.num_res_blocks = s["num_res_blocks"].integer(limits::NUM_RES_BLOCKS);
    model.shared_aln = s["shared_aln"].boolean();
    model.attn_l2_norm = s["attn_l2_norm"].boolean();
    model.norm_eps = s["norm_eps"].number(limits::NORM_EPS);
    model.mlp_ratio = s["mlp_ratio"].number(limits::MLP_RATIO);
    model.quant_resi = s["quant_resi"].number(limits::QUANT_RESI);
    model.share_quant_resi = s["share_quant_resi"].integer(limits::SHARE_QUANT_RESI);
    model.using_znorm = s["using_znorm"].boolean();
    model.quant_conv_ks = s["quant_conv_ks"].integer();
    const auto& known = limits::QUANT_CONV_KS;
    if (std::find(std::begin(known), std::end(known), model.quant_conv_ks) == std::end(known)) {
        throw s["quant_conv_ks"].wrong(listed({std::begin(known), std::end(known)}));
    }
    return model;
}

Scale parse_scale(const Strict& s) {
    s.with({"side", "tokens", "offset", "phi", "upsample", "downsample"});
    return {s["side"].integer(), s["tokens"].integer(),  s["offset"].integer(),
            s["phi"].integer(),  s["upsample"].string(), s["downsample"].string_or_null()};
}

TensorSpec parse_tensor(const Strict& s) {
    s.with({"name", "dtype", "shape"});
    TensorSpec tensor{s["name"].name(), Dtype::float32, {}};
    const std::string dtype = s["dtype"].string();
    const auto found = std::find(DTYPES.begin(), DTYPES.end(), dtype);
    if (found == DTYPES.end()) throw s["dtype"].wrong("a dtype out of float32, float16, int64, int32, uint8, bool");
    tensor.dtype = Dtype(found - DTYPES.begin());
    for (const Strict& axis : s["shape"].list(limits::RANK)) {
        const std::string symbol = axis.is_string() ? axis.string() : "";
        const bool known = axis.is_string() ? std::find(SYMBOLS.begin(), SYMBOLS.end(), symbol) != SYMBOLS.end()
                                            : limits::SIZE.holds(double(axis.integer()));
        if (!known) {
            throw axis.wrong(number(limits::SIZE.least) + " to " + number(limits::SIZE.most) +
                             " or B, 2B, L, L_next, S");
        }
        if (axis.is_string()) tensor.shape.emplace_back(symbol);
        else tensor.shape.emplace_back(axis.integer());
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
    return {s["size"].integer({0, double(INT64_MAX)}), s["sha256"].string(), {}};
}

// Checks where a bundle comes from, and returns the hash of its VQVAE, or "" if it has none.
std::string parse_provenance(const Strict& s) {
    s.with({"created", "source", "tools", "options"});
    s["created"].string();
    std::string vqvae;
    for (const auto& [key, found] : s["source"].members()) {
        if (key == "vqvae_sha256") {
            vqvae = found.string();
            const bool digest = vqvae.size() == 64 && vqvae.find_first_not_of("0123456789abcdef") == vqvae.npos;
            if (!digest) throw found.wrong("64 hexadecimal digits");
        }
        if (key == "random_weights") found.integer({0, double(INT64_MAX)});
        if (key != "var_checkpoint" && key != "vae_checkpoint") continue;
        for (const auto& [name, text] : found.members(SIZE_MAX)) name == "file" ? text.plain_name() : text.string();
    }
    for (const auto& [_, version] : s["tools"].members()) version.string();
    for (const auto& [key, found] : s["options"].members()) {
        if (key != "plan") continue;
        for (const auto& [_, layers] : found.members(SIZE_MAX)) {
            for (const Strict& layer : layers.list(SIZE_MAX)) layer.string();
        }
    }
    return vqvae;
}

// Throws unless the file has its size and, if `verify`, its SHA-256.
void check_file(const fs::path& path, const FileSpec& expected, bool verify,
                const std::function<void(std::size_t)>& on_bytes = {}) {
    const std::int64_t size = file_bytes(path);
    if (size != expected.size) {
        throw bad_bundle(path.string() + ": expected " + std::to_string(expected.size) + " bytes, found " +
                         std::to_string(size) + "; copy the whole bundle again");
    }
    const std::string digest = verify ? sha256(path, on_bytes) : expected.sha256;
    if (digest != expected.sha256) {
        throw bad_bundle(path.string() + ": altered: expected SHA-256 " + expected.sha256.substr(0, 12) + "…, found " +
                         digest.substr(0, 12) + "…; copy the whole bundle again");
    }
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

std::int64_t Model::phis() const { return share_quant_resi ? share_quant_resi : std::int64_t(patch_nums.size()); }

Manifest Manifest::parse(const std::string& text, const std::string& where) {
    const nlohmann::json document = parse_json(text, where);
    check_schema(document, SCHEMA_VERSION, where, "export the bundle again");
    const Strict s(document, where);
    s.with({"schema_version", "model", "precision", "classes", "scales", "step_constants", "graphs", "files",
            "provenance"});
    Manifest manifest;
    manifest.model = parse_model(s["model"]);
    manifest.precision = s["precision"].one_of(
        {"fp32", "fp16", "int8 for trt", "int8 for cpu", "fp16 simulated", "int8 for trt simulated"});
    manifest.classes = s["classes"].string_or_null();
    for (const Strict& scale : s["scales"].list()) manifest.scales.push_back(parse_scale(scale));
    for (const Strict& name : s["step_constants"].list(SIZE_MAX)) manifest.step_constants.push_back(name.string());
    for (const auto& [name, graph] : s["graphs"].named()) manifest.graphs.emplace(name, parse_graph(graph));
    for (const auto& [name, file] : s["files"].named()) manifest.files.emplace(name, parse_file(file));
    manifest.vqvae_sha256 = parse_provenance(s["provenance"]);
    manifest.check(where);
    return manifest;
}

Manifest Manifest::load(const fs::path& bundle, bool verify, const Progress& progress) {
    const fs::path path = bundle / MANIFEST;
    if (std::error_code ignored; !fs::exists(path, ignored)) {
        throw bad_bundle(bundle.string() + ": no " + MANIFEST + ", so not a bundle; make onnx makes one");
    }
    Manifest manifest = parse(read_text(path, limits::JSON_BYTES), path.string());
    std::uint64_t done = 0, total = 0;
    for (const auto& [_, file] : manifest.files) total += std::uint64_t(file.size);
    for (auto& [name, file] : manifest.files) {
        const fs::path listed = bundle / name;
        if (!is_file(listed)) throw bad_bundle(listed.string() + ": missing; copy the whole bundle again");
        file.stamp = stamp(listed);
        check_file(listed, file, verify, [&, text = name.c_str()](std::size_t bytes) {
            done += bytes;
            if (progress) progress(VAR_EDGE_CHECKING, text, done, total);
        });
    }
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
    const auto& sides = model.patch_nums;
    const bool growing = std::adjacent_find(sides.begin(), sides.end(), std::greater_equal<>()) == sides.end();
    expect(growing, where + ".model.patch_nums", "growing sides", listed(sides));
    expect(model.tokens() <= limits::TOKENS, where + ".model.patch_nums",
           "at most " + std::to_string(limits::TOKENS) + " tokens of all scales together",
           std::to_string(model.tokens()));
    expect(model.width % model.heads == 0, where + ".model.width",
           "a multiple of heads (" + std::to_string(model.heads) + ")", std::to_string(model.width));
    const std::int64_t image_size = model.grid() << (model.ch_mult.size() - 1);
    expect(model.image_size == image_size, where + ".model.image_size",
           std::to_string(image_size) + ", as the other sizes say", std::to_string(model.image_size));
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
        expect(scale.phi >= 0 && scale.phi < model.phis(), place + ".phi", "0 to " + std::to_string(model.phis() - 1),
               std::to_string(scale.phi));
        offset += scale.tokens;
    }
}

void Manifest::check_names(const std::string& where) const {
    for (const auto& [name, _] : files) {
        const bool plain = is_plain_name(name) && name != MANIFEST;
        expect(plain, where + ".files", "plain names of other files", name);
    }
    for (const char* name : REQUIRED_GRAPHS) expect(graphs.count(name), where + ".graphs", name, "none");
    std::vector<std::string> used = {WEIGHTS};
    if (classes) used.push_back(*classes);
    for (const auto& [_, graph] : graphs) used.push_back(graph.file);
    for (const std::string& name : used) {
        expect(files.count(name), where + ".files", name + ", which the bundle uses", "none");
    }
    for (const std::string& name : step_constants) {
        const auto& inputs = graphs.at("transformer").inputs;
        const bool known =
            std::any_of(inputs.begin(), inputs.end(), [&](const TensorSpec& input) { return input.name == name; });
        expect(known, where + ".step_constants", "inputs of the transformer", name);
    }
}

void Manifest::check_still(const fs::path& bundle, const std::string& name, bool verify) const {
    const FileSpec& file = files.at(name);
    if (stamp(bundle / name) != file.stamp) check_file(bundle / name, file, verify);
}

}  // namespace var_edge_impl
