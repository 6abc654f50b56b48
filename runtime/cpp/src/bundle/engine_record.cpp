#include "bundle/engine_record.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "bundle/schema.hpp"
#include "files/bounded.hpp"
#include "files/fingerprint.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t ENGINE_SCHEMA_VERSION = 3;

constexpr const char* FLAVOURS[] = {"tensorrt", "tensorrt_rtx"};
constexpr const char* GRAPHS[] = {"condition", "transformer",  "bridge", "bridge_smooth",
                                  "decoder",   "decoder_tiny", "encoder"};

template <std::size_t N>
bool is_one_of(const char* const (&known)[N], const std::string& text) {
    return std::find(std::begin(known), std::end(known), text) != std::end(known);
}

// Whether a text is numbers of at most `digits` digits with dots between them, "10.3.0".
bool are_numbers(const std::string& text, std::size_t digits) {
    std::size_t length = 0;  // of the number so far
    for (const char c : text) {
        if (c == '.' ? length == 0 : (c < '0' || c > '9' || length == digits)) return false;
        length = c == '.' ? 0 : length + 1;
    }
    return length > 0;
}

// Whether a text is a compute capability, "8.6".
bool is_capability(const std::string& text) {
    const std::size_t dot = text.find('.');
    return dot != std::string::npos && dot + 2 == text.size() && are_numbers(text, 3);
}

Built parse_built(const Strict& s) {
    s.with({"flavour", "version", "compute_capabilities", "gpu", "hardware_compatible", "version_compatible"});
    Built built{s["flavour"].string(),
                s["version"].string(),
                {},
                s["gpu"].string_or_null(),
                s["hardware_compatible"].boolean(),
                s["version_compatible"].boolean()};
    for (const Strict& capability : s["compute_capabilities"].list(SIZE_MAX)) {
        built.compute_capabilities.push_back(capability.string());
        if (!is_capability(built.compute_capabilities.back())) throw capability.wrong("a number such as 8.6");
    }
    if (!is_one_of(FLAVOURS, built.flavour)) throw s["flavour"].wrong("tensorrt or tensorrt_rtx");
    if (!are_numbers(built.version, 9)) throw s["version"].wrong("numbers such as 10.3.0");
    if (built.compute_capabilities.empty()) throw s["compute_capabilities"].wrong("numbers such as 8.6");
    return built;
}

Engine parse_engine(const Strict& s) {
    s.with(
        {"file", "source_sha256", "profiles", "build_seconds", "weight_bytes", "layers", "int8_planned", "int8_built"});
    Engine engine{s["file"].string(), s["source_sha256"].string(), {}};
    for (const Strict& profile : s["profiles"].list()) {
        std::map<std::string, Shape> shapes;
        for (const auto& [name, shape] : profile.named()) shapes[name] = shape.shape();
        engine.profiles.push_back(std::move(shapes));
    }
    s["build_seconds"].number({-HUGE_VAL, HUGE_VAL});
    s["weight_bytes"].integer();
    for (const auto& [_, layers] : s["layers"].members()) layers.integer();
    s["int8_planned"].integer();
    s["int8_built"].integers();
    return engine;
}

}  // namespace

std::string Built::tag() const {
    std::string text = flavour + "-" + version;
    for (std::string capability : compute_capabilities) {
        capability.erase(capability.find('.'), 1);
        text += "-sm" + capability;
    }
    return text;
}

EngineRecord EngineRecord::parse(const std::string& text, const std::string& where) {
    const nlohmann::json document = parse_json(text, where);
    check_schema(document, ENGINE_SCHEMA_VERSION, where, "run make engine again");
    const Strict s(document, where);
    s.with({"schema_version", "built", "weights_sha256", "batches", "guidance_scales", "options", "engines",
            "peak_bytes", "created"});
    EngineRecord record{parse_built(s["built"]), s["weights_sha256"].string(), {}, 0, {}};
    record.guidance_scales = s["guidance_scales"].integer(limits::GUIDANCE_SCALES);
    for (const Strict& batch : s["batches"].list(limits::BATCHES)) {
        record.batches.push_back(batch.integer(limits::BATCH));
    }
    if (record.batches.empty()) throw s["batches"].wrong("at least one batch size");
    for (const auto& [name, engine] : s["engines"].named()) {
        if (!is_one_of(GRAPHS, name)) throw s["engines"].wrong("graphs of a bundle");
        record.engines.emplace(name, parse_engine(engine));
    }
    s["options"].members();
    s["peak_bytes"].integer();
    s["created"].string();
    return record;
}

EngineRecord EngineRecord::load(const fs::path& folder) {
    const fs::path path = folder / ENGINE_RECORD;
    if (std::error_code ignored; !fs::exists(path, ignored)) {
        throw bad_bundle(folder.string() + ": no " + ENGINE_RECORD + ", so no engines; make engine builds them");
    }
    return parse(read_text(path, limits::JSON_BYTES), path.string());
}

bool EngineRecord::fits(const Manifest& manifest) const {
    if (weights_sha256 != manifest.files.at(WEIGHTS).sha256) return false;
    return std::all_of(engines.begin(), engines.end(), [&](const auto& entry) {
        const auto graph = manifest.graphs.find(entry.first);
        return graph != manifest.graphs.end() &&
               entry.second.source_sha256 == manifest.files.at(graph->second.file).sha256;
    });
}

std::size_t EngineRecord::profile(std::int64_t batch, std::size_t scale, std::size_t scales) const {
    const auto found = std::find(batches.begin(), batches.end(), batch);
    return std::size_t(found - batches.begin()) * scales + scale;
}

std::size_t EngineRecord::unguided_profile(std::int64_t batch, std::size_t scale, std::size_t scales) const {
    const auto guided = std::size_t(guidance_scales);
    return batches.size() * scales + profile(batch, scale - guided, scales - guided);
}

std::map<std::string, std::int64_t> scale_sizes(const std::vector<Scale>& scales, std::size_t k, std::int64_t batch) {
    const std::size_t next = (k + 1) % scales.size();
    const Scale& following = scales[next ? next : 1];
    return {{"B", batch},
            {"2B", 2 * batch},
            {"L", scales[k].tokens},
            {"S", scales[k].offset},
            {"L_next", following.tokens}};
}

std::vector<fs::path> engine_folders(const fs::path& bundle) {
    std::vector<fs::path> folders;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(bundle / ENGINES, ignored)) {
        if (is_file(entry.path() / ENGINE_RECORD)) folders.push_back(entry.path());
    }
    std::sort(folders.begin(), folders.end());
    return folders;
}

}  // namespace var_edge_impl
