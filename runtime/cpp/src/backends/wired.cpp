#include "backends/wired.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "errors.hpp"

namespace var_edge_impl {

Batch::Batch(std::unique_ptr<Arrays> made, const Wanted& wanted, const Manifest& manifest,
             const std::vector<ScaleConstants>& constants)
    : arrays(std::move(made)), wiring(wanted, manifest, constants, *arrays) {}

void check_smooth(const Manifest& manifest) {
    if (manifest.graphs.count(SMOOTH_BRIDGE)) return;
    throw bad_bundle(manifest.model.name +
                     ": no graph for smooth sampling; make onnx SMOOTH=1 exports the bundle with it");
}

std::vector<std::string> decoder_graphs(const Manifest& manifest) {
    std::vector<std::string> found = {DECODER};
    if (manifest.graphs.count(TINY_DECODER)) found.emplace_back(TINY_DECODER);
    return found;
}

std::vector<std::string> drawing_graphs(const Manifest& manifest) {
    std::vector<std::string> found(REQUIRED_GRAPHS.begin(), REQUIRED_GRAPHS.end());
    if (manifest.graphs.count(TINY_DECODER)) found.emplace_back(TINY_DECODER);
    return found;
}

void WiredBackend::check(const Sampling& sampling) const {
    if (sampling.smooth) check_smooth(*manifest_);
    if (manifest_->graphs.count(sampling.decoder_graph())) return;
    throw bad_bundle(manifest_->model.name +
                     ": no tiny decoder in this bundle; export it with --tiny-decoder FILE, which"
                     " examples.tiny_decoder.distill makes");
}

void WiredBackend::begin(const std::vector<std::int64_t>& labels, const Sampling& sampling, const Plan& plan) {
    const auto device = current_device();
    batch_ = nullptr;
    check(sampling);
    decoder_ = sampling.decoder_graph();
    const auto guided = std::size_t(sampling.guided(std::int64_t(manifest_->scales.size())));
    Batch& batch = prepared({std::int64_t(labels.size()), sampling.smooth, guided}, plan);
    batch.arrays->wait();  // a run that was stopped may still read what is written now
    batch.latest = -1;
    batch.decoded = false;
    batch.wiring.set_labels(labels.data());
    batch.begin();
    batch_ = &batch;
}

void WiredBackend::step(std::size_t k, const Draw& draw, const Sampling& sampling) {
    const auto device = current_device();
    batch_->decoded = false;
    batch_->wiring.set_scale(k, draw, sampling);
    batch_->step(k);
    batch_->latest = std::int64_t(k);
}

void WiredBackend::tokens(std::size_t k, std::int32_t* out) { copy_result(k, "tokens", out); }

void WiredBackend::drawn(std::size_t k, std::int32_t* out) { copy_result(k, "drawn", out); }

void WiredBackend::logits(std::size_t k, float* out) {
    const auto device = current_device();
    batch_->arrays->download(out, batch_->logits().rows(0, manifest_->scales[k].tokens));
}

std::vector<std::uint8_t> WiredBackend::finite() {
    const auto size = std::size_t(batch_->wiring.size);
    std::vector<std::uint8_t> rows(size * ALIGNMENT), found;  // (B, ALIGNMENT)
    copy_result(manifest_->scales.size(), "finite", rows.data());
    for (std::size_t i = 0; i < size; ++i) found.push_back(rows[i * ALIGNMENT]);
    return found;
}

void WiredBackend::decode(std::uint8_t* images, bool to_device, bool preview) {
    const auto device = current_device();
    batch_->decode(preview && manifest_->graphs.count(TINY_DECODER) ? TINY_DECODER : decoder_);
    batch_->decoded = true;
    const std::size_t part = manifest_->scales.size();
    if (to_device) batch_->arrays->download(images, batch_->wiring.results.stages(part).at("image"));
    else copy_result(part, "image", images);
}

// Copies an array of the wiring's results. After `decode` they are in the host's memory already.
void WiredBackend::copy_result(std::size_t part, const char* name, void* out) const {
    const SharedBlock& results = batch_->wiring.results;
    const Array& array = results.stages(part).at(name);
    if (batch_->decoded) {
        std::memcpy(out, results.host<std::uint8_t>(part, name), array.bytes());
    } else {
        const auto device = current_device();
        batch_->arrays->download(out, array);
    }
}

// Returns the batch of this size, ready to draw. If memory runs out, all that is held is freed and it is tried again.
Batch& WiredBackend::prepared(const Wanted& wanted, const Plan& plan) {
    if (!keeps_batches_ && !batches_.count(wanted)) free_batches();  // before new arrays are allocated
    free_oldest_kind(wanted);
    return with_room(room_of_batches(), [&]() -> Batch& { return prepare(wanted, plan); });
}

// Frees the batches of the kind that was not drawn for the longest time if there are more kinds than are kept.
void WiredBackend::free_oldest_kind(const Wanted& wanted) {
    const std::pair<bool, std::size_t> kind(wanted.smooth, wanted.guided);
    kinds_.erase(std::remove(kinds_.begin(), kinds_.end(), kind), kinds_.end());
    kinds_.push_back(kind);
    if (kinds_.size() <= KINDS_KEPT) return;
    const auto [smooth, guided] = kinds_.front();
    kinds_.erase(kinds_.begin());
    for (auto entry = batches_.begin(); entry != batches_.end();) {
        const bool oldest = entry->first.smooth == smooth && entry->first.guided == guided;
        entry = oldest ? batches_.erase(entry) : std::next(entry);
    }
}

Batch& WiredBackend::prepare(const Wanted& wanted, const Plan& plan) {
    std::unique_ptr<Batch>& batch = batches_[wanted];
    try {
        if (!batch) batch = new_batch(wanted);
        batch->prepare(plan, decoder_);
    } catch (...) {
        batches_.erase(wanted);  // also what is allocated of it
        throw;
    }
    return *batch;
}

std::function<void()> WiredBackend::room_of_batches() {
    if (batches_.empty()) return nullptr;
    return [this] { free_batches(); };
}

void WiredBackend::free_batches() {
    const auto device = current_device();
    batch_ = nullptr;
    batches_.clear();
}

}  // namespace var_edge_impl
