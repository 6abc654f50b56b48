// The one exception of the library: a status of the C API and a message for people.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "text.hpp"
#include "var_edge.h"

namespace var_edge_impl {

// The message is made one printable line, whatever it contains.
class Error : public std::runtime_error {
  public:
    Error(var_edge_status code, const std::string& message) : std::runtime_error(one_line(message)), status(code) {}
    var_edge_status status;
};

inline Error bad_bundle(const std::string& message) { return {VAR_EDGE_BAD_BUNDLE, message}; }
inline Error bad_argument(const std::string& message) { return {VAR_EDGE_BAD_ARGUMENT, message}; }
inline Error unsupported(const std::string& message) { return {VAR_EDGE_UNSUPPORTED, message}; }
inline Error failed(const std::string& message) { return {VAR_EDGE_FAILED, message}; }
inline Error out_of_memory(const std::string& message) { return {VAR_EDGE_OUT_OF_MEMORY, message}; }

constexpr const char* DRAW_FEWER = "; draw fewer pictures at once (batch 1) or close other programs";

// Returns an error with an engine's own message, of which only the text tells whether memory ran out.
inline Error engine_error(var_edge_status status, const std::string& what, const std::string& reason) {
    if (tells_out_of_memory(reason)) return out_of_memory(what + ": " + reason + DRAW_FEWER);
    return {status, what + ": " + reason};
}

// Returns what `work` returns. If memory runs out, calls `make_room`, unless it is null, and tries again.
template <typename Work>
decltype(auto) with_room(const std::function<void()>& make_room, Work&& work) {
    try {
        return work();
    } catch (const Error& error) {
        if (error.status != VAR_EDGE_OUT_OF_MEMORY || !make_room) throw;
    }
    make_room();
    return work();
}

}  // namespace var_edge_impl
