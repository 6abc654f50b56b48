// What the features have in common: how they draw, and how they say what is wrong.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <var_edge.hpp>

// By name, what a file of this folder shows; each is given a directory.
using Features = std::map<std::string, void (*)(const std::string&)>;
extern const Features CALLS, DRAWING, LOADING, STRUCTS;

using var_edge::Model;
using var_edge::Pictures;
using var_edge::Settings;

inline std::atomic<int> failures{0};

inline void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::cout << what << "; last error: " << var_edge_last_error() << std::endl;
    ++failures;
}

// The call is refused with this status and a message that says this.
inline void refused(const std::string& what, var_edge_status found, var_edge_status wanted, const std::string& says) {
    expect(found == wanted && std::strstr(var_edge_last_error(), says.c_str()), what + ": expected \"" + says + "\"");
}

inline bool same(const Pictures& a, const Pictures& b) { return a.images == b.images && a.tokens == b.tokens; }

// One thread: the thread sanitizer does not see the locks of ONNX Runtime's pool.
inline var_edge::Options one_thread() {
    var_edge::Options options;
    options.threads = 1;
    return options;
}

inline Settings of_seed(std::uint64_t seed) {
    Settings settings;
    settings.seed = seed;
    return settings;
}

inline var_edge_status draw(Model& model, const Settings& settings, std::vector<std::int32_t> labels = {1}) {
    std::vector<std::uint8_t> images(var_edge::picture_bytes(model.info(), std::max<std::size_t>(labels.size(), 1)));
    return var_edge_generate(model.get(), labels.data(), std::int32_t(labels.size()), &settings, images.data(),
                             nullptr);
}
