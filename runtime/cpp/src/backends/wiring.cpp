#include "backends/wiring.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "bundle/engine_record.hpp"
#include "bundle/weight_file.hpp"
#include "errors.hpp"

namespace var_edge_impl {

namespace {

std::string numbered(const std::string& name, std::int64_t number) {
    char text[32];
    std::snprintf(text, sizeof text, "_%02lld", static_cast<long long>(number));
    return name + text;
}

Tensors joined(std::initializer_list<const Tensors*> parts) {
    Tensors all;
    for (const Tensors* part : parts) all.insert(part->begin(), part->end());
    return all;
}

// The labels, then what each scale is drawn with.
std::vector<SharedBlock::Part> settings_parts(const Manifest& manifest, std::int64_t size, bool smooth) {
    std::vector<SharedBlock::Part> parts = {{{"labels", {size}, Dtype::int64}}};
    for (const Scale& scale : manifest.scales) {
        const Shape map = {size, scale.tokens};
        SharedBlock::Part part = {{"guidance", {1}, Dtype::float32},
                                  {"top_k", {1}, Dtype::int64},
                                  {"top_p", {1}, Dtype::float32},
                                  {"keep", map, Dtype::boolean},
                                  {"kept_tokens", map, Dtype::int32}};
        if (smooth) {
            part.emplace_back("noise", Shape{size, scale.tokens, manifest.model.vocab_size}, Dtype::float32);
            part.emplace_back("sharpness", Shape{1}, Dtype::float32);
            part.emplace_back("temperature", Shape{1}, Dtype::float32);
        } else {
            part.emplace_back("uniforms", map, Dtype::float32);
        }
        parts.push_back(std::move(part));
    }
    return parts;
}

// The tokens of each scale, then the pictures.
std::vector<SharedBlock::Part> result_parts(const Manifest& manifest, std::int64_t size) {
    std::vector<SharedBlock::Part> parts;
    for (const Scale& scale : manifest.scales) {
        const Shape map = {size, scale.tokens};
        parts.push_back({{"drawn", map, Dtype::int32}, {"tokens", map, Dtype::int32}});
    }
    const std::int64_t side = manifest.model.image_size;
    parts.push_back({{"image", {size, side, side, 3}, Dtype::uint8},
                     {"finite", {size, ALIGNMENT}, Dtype::boolean}});  // a picture's is the first of its row
    return parts;
}

// The transformer's arrays for a number of columns: 2B with guidance, B with the label only.
//
// Token-major arrays are as long as the largest scale needs; a smaller one uses the first rows. The caches of keys and
// values have rows for `tokens` tokens: the past ones are the first rows, and the new ones go right behind them.
struct Columns {
    Columns(std::int64_t columns, std::int64_t tokens, const Manifest& manifest, Arrays& arrays) {
        const Model& model = manifest.model;
        const std::int64_t rows = manifest.scales.back().tokens;
        x = arrays.empty({rows, columns, model.width}, Dtype::float32);
        logits = arrays.empty({rows, columns, model.vocab_size}, Dtype::float32);
        modulation = arrays.empty({model.depth, 6, columns, model.width}, Dtype::float32);
        head_modulation = arrays.empty({2, columns, model.width}, Dtype::float32);
        std::map<std::string, Dtype> dtypes;
        for (const TensorSpec& spec : manifest.graphs.at("transformer").inputs) dtypes[spec.name] = spec.dtype;
        const Shape cache_shape = {tokens, columns, model.heads, model.width / model.heads};
        for (const char* kind : {"k", "v"}) {
            for (std::int64_t block = 0; block < model.depth; ++block) {
                const std::string name = numbered(kind, block);
                const auto dtype = dtypes.find("past_" + name);
                if (dtype == dtypes.end()) throw bad_bundle("manifest: the transformer has no input past_" + name);
                caches[name] = arrays.empty(cache_shape, dtype->second);
            }
        }
    }

    Stage transformer(const Scale& scale, const Tensors& constants, std::vector<ColumnCopy> copies) const {
        const std::int64_t start = scale.offset, end = scale.offset + scale.tokens;
        Tensors inputs = {{"x", x.rows(0, scale.tokens)}, {"head_modulation", head_modulation}};
        inputs.insert(constants.begin(), constants.end());
        for (std::int64_t i = 0; i < modulation.shape[0]; ++i) {
            const Array block = modulation.rows(i, i + 1);
            inputs[numbered("modulation", i)] = block.reshaped({6, block.shape[2], block.shape[3]});
        }
        Tensors outputs = {{"logits", logits.rows(0, scale.tokens)}};
        for (const auto& [name, cache] : caches) {
            inputs["past_" + name] = cache.rows(0, start);
            outputs["new_" + name] = cache.rows(start, end);
        }
        return {"transformer", std::move(inputs), std::move(outputs), std::move(copies)};
    }

    // Returns the copies of what `other` holds after `tokens` tokens, except x.
    std::vector<ColumnCopy> taken_over(const Columns& other, std::int64_t tokens) const {
        const auto by_row = [](const Array& array) {
            const Shape& shape = array.shape;
            return array.reshaped({shape[0] * shape[1], shape[2], shape[3]});
        };
        std::vector<ColumnCopy> copies = {{by_row(modulation), by_row(other.modulation)},
                                          {head_modulation, other.head_modulation}};
        for (const auto& [name, cache] : caches) {
            copies.push_back({cache.rows(0, tokens), other.caches.at(name).rows(0, tokens)});
        }
        return copies;
    }

    Array x;                // (L, 2B, C)
    Array logits;           // (L, 2B, V)
    Array modulation;       // (depth, 6, 2B, C)
    Array head_modulation;  // (2, 2B, C)
    Tensors caches;         // (T, 2B, H, 64) each
};

}  // namespace

SharedBlock::SharedBlock(Arrays& arrays, const std::vector<Part>& parts) : arrays_(&arrays) {
    std::vector<std::vector<std::size_t>> places;  // of each part's arrays in the block
    std::size_t end = 0;
    for (const Part& part : parts) {
        starts_.push_back(end);
        places.emplace_back();
        for (const auto& [_, shape, dtype] : part) {
            places.back().push_back(end);
            end += (Array{nullptr, shape, dtype}.bytes() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
    }
    starts_.push_back(end);
    std::tie(host_, block_) = arrays.shared(end);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        stages_.emplace_back();
        for (std::size_t j = 0; j < parts[i].size(); ++j) {
            const auto& [name, shape, dtype] = parts[i][j];
            std::uint8_t* data = block_.data ? block_.data + places[i][j] : nullptr;
            stages_.back()[name] = {data, shape, dtype, block_.place};
        }
    }
}

void SharedBlock::upload(std::size_t part) const {
    const std::size_t start = starts_[part];
    arrays_->upload(block_.data + start, host_ + start, starts_[part + 1] - start);
}

std::vector<ScaleConstants> scale_constants(const std::filesystem::path& bundle, const Manifest& manifest,
                                            Arrays& arrays) {
    const WeightFile weights(bundle / WEIGHTS);
    std::map<std::string, Array> placed;

    const auto place = [&](const std::string& name, const Shape& shape, Dtype dtype, const void* values) {
        auto found = placed.find(name);
        if (found != placed.end()) return found->second;
        return placed[name] = arrays.constant(shape, dtype, values);
    };
    const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
        if (placed.count(name)) return placed[name];
        const StoredTensor& stored = weights.at(name);
        if (stored.shape != Shape{rows, columns} || stored.dtype != "F32") {
            throw bad_bundle((bundle / WEIGHTS).string() + ": " + name + ": expected float32 (" + std::to_string(rows) +
                             ", " + std::to_string(columns) +
                             "), found another shape or dtype; export the bundle again");
        }
        const HostTensor tensor = weights.read(name);
        return place(name, tensor.shape, tensor.dtype, tensor.data.data());
    };

    std::map<std::string, HostTensor> by_step;
    for (const std::string& name : manifest.step_constants) {
        const Shape& shape = weights.at(name).shape;
        if (shape.empty() || shape[0] != std::int64_t(manifest.scales.size())) {
            throw bad_bundle((bundle / WEIGHTS).string() + ": " + name + ": expected one row for each of " +
                             std::to_string(manifest.scales.size()) + " scales; export the bundle again");
        }
        by_step[name] = weights.read(name);
    }
    const std::int64_t pixels = manifest.model.grid() * manifest.model.grid();
    std::vector<ScaleConstants> constants;
    for (std::size_t k = 0; k < manifest.scales.size(); ++k) {
        const Scale& scale = manifest.scales[k];
        const std::size_t next = (k + 1) % manifest.scales.size();
        const Scale& following = manifest.scales[next ? next : 1];
        std::vector<std::int64_t> positions(std::size_t(following.tokens));
        for (std::int64_t i = 0; i < following.tokens; ++i) positions[std::size_t(i)] = following.offset + i;
        const std::string suffix = " " + std::to_string(k);
        ScaleConstants found;
        found.bridge = {
            {"upsample", matrix(scale.upsample, scale.tokens, pixels)},
            {"downsample", matrix(*following.downsample, pixels, following.tokens)},
            {"phi", place("phi" + suffix, {1}, Dtype::int64, &scale.phi)},
            {"next_positions", place("positions" + suffix, {following.tokens}, Dtype::int64, positions.data())},
        };
        for (const auto& [name, tensor] : by_step) {
            const Shape row(tensor.shape.begin() + 1, tensor.shape.end());
            const std::size_t size = tensor.data.size() / manifest.scales.size();
            found.transformer[name] = place(name + suffix, row, tensor.dtype, tensor.data.data() + k * size);
        }
        constants.push_back(std::move(found));
    }
    return constants;
}

Wiring::Wiring(const Wanted& wanted, const Manifest& manifest, const std::vector<ScaleConstants>& constants,
               Arrays& arrays)
    : size(wanted.size),
      smooth(wanted.smooth),
      guided(wanted.guided),
      settings(arrays, settings_parts(manifest, size, smooth)),
      results(arrays, result_parts(manifest, size)),
      vocab_size_(manifest.model.vocab_size) {
    const Model& model = manifest.model;
    const std::vector<Scale>& scales = manifest.scales;
    for (const Scale& scale : scales) counts_.push_back(scale.tokens);
    const Shape f_hat_shape = {size, model.code_size, model.grid(), model.grid()};  // (B, Z, P, P)
    for (Array& f_hat : f_hat_) f_hat = arrays.empty(f_hat_shape, Dtype::float32);
    const std::vector<std::uint8_t> zeros(f_hat_[0].data ? f_hat_[0].bytes() : 0);
    const Array f_hat_before = arrays.constant(f_hat_shape, Dtype::float32, zeros.data());  // scale 0

    const Scale& last_guided = scales[guided - 1];
    const Columns both(2 * size, last_guided.offset + last_guided.tokens, manifest, arrays);
    const Columns labelled = guided == scales.size() ? both : Columns(size, model.tokens(), manifest, arrays);
    logits = both.logits;
    condition = {"condition",
                 settings.stages(0),
                 {{"modulation", both.modulation},
                  {"head_modulation", both.head_modulation},
                  {"x", both.x.rows(0, scales[0].tokens)}}};
    for (std::size_t k = 0; k < scales.size(); ++k) {
        const Scale& scale = scales[k];
        const Columns& columns = k < guided ? both : labelled;
        std::vector<ColumnCopy> before, after;  // of the transformer
        if (k == guided) before = labelled.taken_over(both, scale.offset);
        if (k >= guided) {
            before.push_back({labelled.x.rows(0, scale.tokens), both.x.rows(0, scale.tokens)});
            after.push_back({both.logits.rows(0, scale.tokens), labelled.logits.rows(0, scale.tokens)});
        }
        const std::int64_t next = scale_sizes(scales, k, size).at("L_next");
        const Tensors drawing = {{"logits", logits.rows(0, scale.tokens)},
                                 {"f_hat", k ? f_hat_after(k - 1) : f_hat_before}};
        const Tensors following = {{"f_hat_out", f_hat_after(k)}, {"x_next", both.x.rows(0, next)}};
        steps.emplace_back(
            columns.transformer(scale, constants[k].transformer, std::move(before)),
            Stage{smooth ? SMOOTH_BRIDGE : "bridge", joined({&drawing, &settings.stages(k + 1), &constants[k].bridge}),
                  joined({&results.stages(k), &following}), std::move(after)});
    }
}

void Wiring::set_labels(const std::int64_t* values) const {
    std::copy_n(values, size, settings.host<std::int64_t>(0, "labels"));
}

void Wiring::set_scale(std::size_t k, const Draw& draw, const Sampling& sampling) const {
    const std::size_t part = k + 1;
    const std::int64_t count = size * counts_[k];
    if (smooth) {
        const auto scales = std::int64_t(counts_.size());
        std::copy_n(draw.randoms, count * vocab_size_, settings.host<float>(part, "noise"));
        *settings.host<float>(part, "sharpness") = float(sampling.sharpness(std::int64_t(k), scales));
        *settings.host<float>(part, "temperature") = float(sampling.temperature(std::int64_t(k), scales));
    } else {
        std::copy_n(draw.randoms, count, settings.host<float>(part, "uniforms"));
    }
    *settings.host<float>(part, "guidance") = float(draw.guidance);
    *settings.host<std::int64_t>(part, "top_k") = sampling.top_k;
    *settings.host<float>(part, "top_p") = float(sampling.top_p);
    std::uint8_t* keep = settings.host<std::uint8_t>(part, "keep");
    std::int32_t* kept = settings.host<std::int32_t>(part, "kept_tokens");
    for (std::int64_t i = 0; i < count; ++i) {
        keep[i] = draw.keep && draw.keep[i];
        kept[i] = keep[i] ? draw.kept_tokens[i] : 0;
    }
}

std::vector<Stage> Wiring::stages(const std::vector<std::string>& decoder_graphs) const {
    std::vector<Stage> all = {condition};
    for (const auto& [transformer, bridge] : steps) all.insert(all.end(), {transformer, bridge});
    for (const std::string& graph : decoder_graphs) {
        const std::vector<Stage> last = decoders(graph, steps.size() - 1);
        all.insert(all.end(), last.begin(), last.end());
    }
    return all;
}

std::vector<Stage> Wiring::decoders(const std::string& graph, std::size_t k) const {
    const Tensors& found = results.stages(steps.size());
    std::vector<Stage> stages;
    for (std::int64_t i = 0; i < size; ++i) {
        const Array finite = found.at("finite").rows(i, i + 1).reshaped({ALIGNMENT}).rows(0, 1);
        stages.push_back({graph,
                          {{"f_hat", f_hat_after(k).rows(i, i + 1)}},
                          {{"image", found.at("image").rows(i, i + 1)}, {"finite", finite}}});
    }
    return stages;
}

}  // namespace var_edge_impl
