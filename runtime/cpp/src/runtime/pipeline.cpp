#include "runtime/pipeline.hpp"

#include <algorithm>

#include "backends/create.hpp"
#include "errors.hpp"
#include "runtime/drafted.hpp"
#include "runtime/editing.hpp"
#include "runtime/numeric.hpp"
#include "runtime/uniforms.hpp"

namespace var_edge_impl {

namespace {

// Says which thread calls back while it lives, also if the callback throws.
class During {
  public:
    explicit During(std::atomic<std::thread::id>& thread) : thread_(thread) { thread_ = std::this_thread::get_id(); }
    ~During() { thread_ = std::thread::id(); }
    During(const During&) = delete;
    During& operator=(const During&) = delete;

  private:
    std::atomic<std::thread::id>& thread_;
};

// Tells a backend who listens while it lives.
class Listening {
  public:
    Listening(Backend& backend, const OnStage& on_stage) : backend_(backend) { backend_.on_stage = on_stage; }
    ~Listening() { backend_.on_stage = nullptr; }
    Listening(const Listening&) = delete;
    Listening& operator=(const Listening&) = delete;

  private:
    Backend& backend_;
};

void expect_count(const char* what, std::size_t count) {
    if (limits::PICTURES.holds(double(count))) return;
    throw bad_argument(std::string(what) + ": expected 1 to " + number(limits::PICTURES.most) + ", found " +
                       std::to_string(count));
}

}  // namespace

Pipeline::Pipeline(const std::filesystem::path& bundle, var_edge_backend backend, const BackendOptions& options) {
    const auto manifest = std::make_shared<const Manifest>(Manifest::load(bundle, options.verify, options.progress));
    bundle_ = bundle.string();
    classes_ = load_classes(bundle, *manifest);
    backend_ = create_backend(backend, bundle, manifest, options);
}

Pipeline::Pipeline(const Pipeline& other)
    : bundle_(other.bundle_), classes_(other.classes_), backend_(other.backend_->share()) {}

void Pipeline::check(const Sampling& sampling) const {
    sampling.check(manifest().model.vocab_size, std::int64_t(manifest().scales.size()));
    backend_->check(sampling);
}

void Pipeline::check(const Request& request, bool to_device) const {
    const Model& model = manifest().model;
    expect_count("labels", request.labels.size());
    for (std::int64_t label : request.labels) {
        if (label < 0 || label > model.num_classes) {
            const std::string last = std::to_string(model.num_classes);
            throw bad_argument("label: expected 0 to " + last + " (" + last + " means no class), found " +
                               std::to_string(label));
        }
    }
    if (request.draft && request.draft_scales && request.sampling.smooth) {  // mixed codes are no tokens to hand over
        throw bad_argument("smooth: expected no smooth sampling with a draft; remove one of the two");
    }
    check(request.sampling);
    if (!limits::BATCH.holds(double(request.batch))) {
        throw bad_argument("batch: expected 1 to " + number(limits::BATCH.most) + ", found " +
                           std::to_string(request.batch));
    }
    if (!request.seeds && request.seed > UINT64_MAX - (request.labels.size() - 1)) {
        const std::string count = std::to_string(request.labels.size());
        throw bad_argument("seed: expected 0 to 2**64 - " + count + " for " + count + " image(s), found " +
                           std::to_string(request.seed));
    }
    if (!request.keep != !request.kept_tokens) throw bad_argument("keep, kept_tokens: expected both or neither");
    const std::size_t count = request.labels.size() * std::size_t(model.tokens());
    for (std::size_t i = 0; request.keep && i < count; ++i) {
        if (request.keep[i] && (request.kept_tokens[i] < 0 || request.kept_tokens[i] >= model.vocab_size)) {
            throw bad_argument("kept_tokens: expected 0 to " + std::to_string(model.vocab_size - 1) + ", found " +
                               std::to_string(request.kept_tokens[i]));
        }
    }
    if (request.draft) {
        check_fit(*request.draft, *this);
        const auto scales = std::int64_t(manifest().scales.size());
        if (request.draft_scales < 0 || request.draft_scales > scales) {
            throw bad_argument("draft_scales: expected 0 to " + std::to_string(scales) + ", found " +
                               std::to_string(request.draft_scales));
        }
    }
    if (to_device && !backend_->on_device()) {
        throw unsupported("images_on_device: " + backend_->name() +
                          " keeps its pictures in host memory; use the TensorRT backend");
    }
}

std::int64_t Pipeline::batch_size(std::int64_t left, std::int64_t batch) const {
    const std::int64_t most = std::min(batch, left);
    if (backend_->batches().empty()) return most;
    std::int64_t size = 1;
    for (std::int64_t possible : backend_->batches()) {
        if (possible <= most) size = std::max(size, possible);
    }
    return size;
}

void Pipeline::generate(const Request& request, std::uint8_t* images, bool to_device, std::int32_t* tokens) {
    check(request, to_device);
    if (request.draft) return generate_drafted(request, images, to_device, tokens);
    const Listening listening(*backend_, request.on_stage);
    const Model& model = manifest().model;
    const std::size_t picture = std::size_t(model.image_size * model.image_size * 3), scales = manifest().scales.size();
    for_each_batch(request, [&](std::int64_t start, std::int64_t size) {
        draw(request, start, size, {scales, true, bool(request.on_scale)});
        check_stop();
        backend_->decode(images + std::size_t(start) * picture, to_device);
        check_drawn(*backend_, manifest(), size, scales);
        check_pixels(*backend_, manifest());
        if (tokens) copy_tokens(start, size, scales, tokens);
    });
}

void Pipeline::generate_drafted(const Request& request, std::uint8_t* images, bool to_device, std::int32_t* tokens) {
    OnScale on_scale;  // what it asks for is the draft's, through this pipeline
    if (request.on_scale) {
        on_scale = [&](std::int64_t k, std::int64_t first, std::int64_t pictures) {
            drawn_ = request.draft->drawn_;
            const During calling(callback_thread_);
            return request.on_scale(k, first, pictures);
        };
    }
    const Drafted drafted(request, *this, on_scale);
    check_stop();
    generate(drafted.rest, images, to_device, tokens);
}

std::vector<std::int32_t> Pipeline::draw_tokens(const Request& request, std::size_t scales) {
    check(request, false);
    const Listening listening(*backend_, request.on_stage);
    std::vector<std::int32_t> tokens(request.labels.size() * std::size_t(manifest().model.tokens()));
    for_each_batch(request, [&](std::int64_t start, std::int64_t size) {
        draw(request, start, size, {scales, false, bool(request.on_scale)});
        check_drawn(*backend_, manifest(), size, scales);
        copy_tokens(start, size, scales, tokens.data());
    });
    return tokens;
}

// Calls `draw` with the first picture and the number of pictures of each batch.
void Pipeline::for_each_batch(const Request& request,
                              const std::function<void(std::int64_t start, std::int64_t size)>& draw) const {
    const auto count = std::int64_t(request.labels.size());
    for (std::int64_t start = 0; start < count;) {
        const std::int64_t size = batch_size(count - start, request.batch);
        draw(start, size);
        check_stop();
        start += size;
    }
}

// Copies the first scales of the batch drawn last into tokens (N, T).
void Pipeline::copy_tokens(std::int64_t start, std::int64_t size, std::size_t scales, std::int32_t* tokens) {
    const std::int64_t total = manifest().model.tokens();
    for (std::size_t k = 0; k < scales; ++k) {
        const Scale& scale = manifest().scales[k];
        std::vector<std::int32_t> map(std::size_t(size * scale.tokens));
        backend_->tokens(k, map.data());
        for (std::int64_t i = 0; i < size; ++i) {
            std::copy_n(map.data() + i * scale.tokens, scale.tokens, tokens + (start + i) * total + scale.offset);
        }
    }
}

void Pipeline::begin(const Request& request, std::int64_t start, std::int64_t size, const Plan& plan) {
    const std::vector<std::int64_t> labels(request.labels.begin() + start, request.labels.begin() + start + size);
    with_room(request.make_room, [&] { backend_->begin(labels, request.sampling, plan); });
}

// Draws the first scales of a batch.
void Pipeline::draw(const Request& request, std::int64_t start, std::int64_t size, const Plan& plan) {
    const std::int64_t total = manifest().model.tokens();
    const bool smooth = request.sampling.smooth;
    const std::int64_t values = smooth ? manifest().model.vocab_size : 1;  // random numbers of a token
    std::vector<std::vector<float>> numbers;
    for (std::int64_t i = 0; i < size; ++i) {
        const std::uint64_t seed = request.seeds ? request.seeds[start + i] : request.seed + std::uint64_t(start + i);
        numbers.push_back((smooth ? gumbel_noise : uniforms)(seed, total * values));
    }
    begin(request, start, size, plan);
    for (std::size_t k = 0; k < plan.scales; ++k) {
        check_stop();
        const Scale& scale = manifest().scales[k];
        // Rows (B, L) of this scale out of (N, T).
        std::vector<float> scale_numbers;
        std::vector<std::uint8_t> keep;
        std::vector<std::int32_t> kept;
        for (std::int64_t i = 0; i < size; ++i) {
            const auto first = numbers[std::size_t(i)].begin() + scale.offset * values;
            scale_numbers.insert(scale_numbers.end(), first, first + scale.tokens * values);
            if (!request.keep) continue;
            const std::int64_t row = (start + i) * total + scale.offset;
            keep.insert(keep.end(), request.keep + row, request.keep + row + scale.tokens);
            kept.insert(kept.end(), request.kept_tokens + row, request.kept_tokens + row + scale.tokens);
        }
        const double guidance = request.sampling.guidance(std::int64_t(k), std::int64_t(manifest().scales.size()));
        backend_->step(k, {scale_numbers.data(), guidance, request.keep ? keep.data() : nullptr, kept.data()},
                       request.sampling);
        if (!request.on_scale) continue;
        drawn_ = {backend_.get(), k, size, guidance};
        const During calling(callback_thread_);
        const bool go_on = request.on_scale(std::int64_t(k), start, size);
        if (!go_on) throw Error(VAR_EDGE_STOPPED, "stopped after scale " + std::to_string(k));
    }
}

void Pipeline::stop(bool wanted) {
    stop_ = wanted;
    backend_->stop(wanted);
}

void Pipeline::check_stop() const {
    if (stop_) throw Error(VAR_EDGE_STOPPED, "stopped by var_edge_stop");
}

const Pipeline::Drawn& Pipeline::drawn(const char* function) const {
    if (callback_thread_ == std::this_thread::get_id()) return drawn_;
    throw bad_argument(std::string(function) + ": only within on_scale, in its thread");
}

// The last preview is the picture itself.
void Pipeline::preview(std::uint8_t* images) {
    const Drawn& now = drawn("var_edge_preview");
    now.by->decode(images, false, now.scale + 1 < manifest().scales.size());
}

void Pipeline::scale_tokens(std::int32_t* tokens) {
    const Drawn& now = drawn("var_edge_scale_tokens");
    now.by->tokens(now.scale, tokens);
}

void Pipeline::scale_logits(float* logits) {
    const Drawn& now = drawn("var_edge_scale_logits");
    const std::int64_t length = manifest().scales[now.scale].tokens, size = now.pictures,
                       vocab = manifest().model.vocab_size;
    std::vector<float> rows(std::size_t(length * 2 * size * vocab));  // (L, 2B, V)
    now.by->logits(now.scale, rows.data());
    const auto t = float(now.guidance);
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t token = 0; token < length; ++token) {
            const float* conditional = rows.data() + (token * 2 * size + i) * vocab;
            const float* unconditional = conditional + size * vocab;
            float* out = logits + (i * length + token) * vocab;
            for (std::int64_t v = 0; v < vocab; ++v) out[v] = (1 + t) * conditional[v] - t * unconditional[v];
        }
    }
}

void Pipeline::encode(const std::uint8_t* images, std::int64_t count, std::int32_t* tokens) {
    const Model& model = manifest().model;
    expect_count("count", std::size_t(count));
    for (std::int64_t i = 0; i < count; ++i) {
        check_stop();
        backend_->encode(images + i * model.image_size * model.image_size * 3, tokens + i * model.tokens());
        check_encoded(tokens + i * model.tokens(), manifest());
    }
}

void Pipeline::edit(Request request, const std::uint8_t* image, const std::vector<std::uint8_t>& kept,
                    std::uint8_t* images, bool to_device, std::int32_t* tokens) {
    if (request.keep || request.kept_tokens) {
        throw bad_argument("settings.keep: expected NULL for an edit, which sets it itself");
    }
    const std::vector<std::uint8_t> keep = keep_masks(kept, manifest().model);
    std::vector<std::int32_t> known(keep.size());
    {
        const Listening listening(*backend_, request.on_stage);
        std::function<void()> make_room;
        if (request.draft) make_room = [draft = request.draft] { draft->free_batches(); };
        with_room(make_room, [&] { encode(image, 1, known.data()); });
    }
    std::vector<std::uint8_t> all_keep;
    std::vector<std::int32_t> all_known;
    for (std::size_t i = 0; i < request.labels.size(); ++i) {
        all_keep.insert(all_keep.end(), keep.begin(), keep.end());
        all_known.insert(all_known.end(), known.begin(), known.end());
    }
    request.keep = all_keep.data();
    request.kept_tokens = all_known.data();
    generate(request, images, to_device, tokens);
}

}  // namespace var_edge_impl
