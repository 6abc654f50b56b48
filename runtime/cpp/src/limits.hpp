// What is accepted from outside: one table for every file and every setting. Twin of runtime/limits.py, name for name:
// tests/runtime/test_limits.py compares them, and the tables of docs/manifest.md.
#pragma once

#include <cstdint>

namespace var_edge_impl::limits {

// Numbers from `least` to `most`. Not-a-number is in no range.
struct Range {
    double least, most;
    bool above = false;  // leaves `least` itself out

    constexpr bool holds(double value) const { return (above ? value > least : value >= least) && value <= most; }
};

// Files. The memory that parsed JSON takes grows with these marks, not with the size of the file.
constexpr std::int64_t JSON_BYTES = 16 << 20;
constexpr std::size_t JSON_DEPTH = 64;
constexpr struct {
    char mark;
    std::int64_t most;
} JSON_COUNTS[] = {{',', 1 << 22}, {'[', 1 << 19}, {'{', 1 << 19}, {':', 1 << 19}, {'"', 1 << 21}};
constexpr std::int64_t HEADER_BYTES = 100'000'000;  // of a safetensors file, as its own reader allows
constexpr std::int64_t TEXT_BYTES = 16 << 20;       // of a list of class names
constexpr std::size_t NAME_BYTES = 1024;
constexpr std::size_t CLASS_NAME_LENGTH = 1024;

// The model, under the names of the manifest.
constexpr Range DEPTH{1, 256}, HEADS{1, 1024}, WIDTH{1, 65536}, VOCAB_SIZE{64, 1 << 20}, CODE_SIZE{1, 4096};
constexpr Range NUM_CLASSES{1, 1 << 20}, IMAGE_SIZE{1, 16384}, CH{1, 4096}, NUM_RES_BLOCKS{1, 64};
constexpr Range SHARE_QUANT_RESI{0, 64}, QUANT_RESI{0, 1}, MLP_RATIO{0, 64, true}, NORM_EPS{0, 1, true};
constexpr Range SIDES{2, 64}, SIDE{1, 1024}, MULTIPLIERS{1, 16},
    MULTIPLIER{1, 64};  // patch_nums and ch_mult: how many, each
constexpr std::int64_t QUANT_CONV_KS[] = {1, 3, 5, 7};
constexpr std::int64_t TOKENS = 65536;  // of all scales together
constexpr std::size_t COUNT = 4096;     // graphs; files; tensors of a graph
constexpr std::size_t RANK = 8;
constexpr Range SIZE{0, INT32_MAX};  // of an axis

// Settings and options.
constexpr Range CFG{0, 1000}, TOP_P{0, 1}, BATCH{1, 1024}, PICTURES{1, 1 << 20}, THREADS{1, 1024};
constexpr Range GUIDANCE_SCALES{1, 64}, DRAFT_SCALES{0, 64};  // at most the scales of the model
constexpr double LEAST_TOP_P = 1e-6;                          // of those above 0
constexpr std::size_t BATCHES = 64;                           // sizes that engines are built for

}  // namespace var_edge_impl::limits
