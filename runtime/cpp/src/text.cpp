#include "text.hpp"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace var_edge_impl {

namespace {

constexpr std::size_t LONGEST_LINE = 300, LONGEST_QUOTE = 60;  // bytes
constexpr char32_t NONE = 0xFFFFFFFF;

// Control characters, ends of lines and what turns the direction of text; UNPRINTABLE of runtime/errors.py.
constexpr struct {
    char32_t first, last;
} UNPRINTABLE[] = {{0x0, 0x1F}, {0x7F, 0x9F}, {0x2028, 0x2029}, {0x202A, 0x202E}, {0x2066, 0x2069}};

// The character at the beginning of `text`, which loses its bytes; NONE and one byte less where that is no UTF-8.
char32_t next(std::string_view& text) {
    const auto byte = [&](std::size_t i) { return std::uint8_t(text[i]); };
    const std::uint8_t lead = byte(0);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    char32_t code = length == 1 ? lead : length ? lead & (0xFF >> (length + 1)) : NONE;
    if (length > text.size()) code = NONE;
    for (std::size_t i = 1; i < length && code != NONE; ++i) {
        code = (byte(i) & 0xC0) == 0x80 ? code << 6 | (byte(i) & 0x3F) : NONE;
    }
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code != NONE && (code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))) code = NONE;
    text.remove_prefix(code == NONE ? 1 : length);
    return code;
}

bool printable(char32_t code) {
    return code != NONE && std::none_of(std::begin(UNPRINTABLE), std::end(UNPRINTABLE),
                                        [&](const auto& range) { return code >= range.first && code <= range.last; });
}

// The nearest place at or before `end` where no character is cut.
std::size_t boundary(std::string_view text, std::size_t end) {
    while (end > 0 && end < text.size() && (text[end] & 0xC0) == 0x80) --end;
    return end;
}

std::string without_middle(const std::string& text, std::size_t most) {
    if (text.size() <= most) return text;
    const std::size_t head = boundary(text, most / 2), tail = boundary(text, text.size() - (most - most / 2 - 4));
    return text.substr(0, head) + "…" + text.substr(tail);
}

}  // namespace

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        if (next(text) == NONE) return false;
    }
    return true;
}

std::size_t characters(std::string_view text) {
    return std::size_t(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

bool is_printable(std::string_view text) {
    while (!text.empty()) {
        if (!printable(next(text))) return false;
    }
    return true;
}

std::string one_line(std::string_view text) {
    std::string line;
    while (!text.empty()) {
        const std::string_view before = text;
        const char32_t code = next(text);
        const bool space = code < 0x80 && std::isspace(int(code));
        if (space && (line.empty() || line.back() == ' ')) continue;
        if (space) line += ' ';
        else if (printable(code)) line += before.substr(0, before.size() - text.size());
        else line += '?';
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    return without_middle(line, LONGEST_LINE);
}

std::string excerpt(std::string_view text) {
    const std::size_t end = boundary(text, std::min(text.size(), LONGEST_QUOTE));
    return '"' + std::string(text.substr(0, end)) + (end < text.size() ? "…\"" : "\"");
}

std::string number(double value) {
    char text[32];
    for (int digits = 1; digits <= 17; ++digits) {
        std::snprintf(text, sizeof text, "%.*g", digits, value);
        if (std::strtod(text, nullptr) == value) break;
    }
    return text;
}

bool tells_out_of_memory(std::string_view message) {
    // OUT_OF_MEMORY of runtime/errors.py, in small letters, and what the C++ library says without memory for a thread.
    constexpr std::string_view signs[] = {"bad_alloc",
                                          "failed to allocate memory",
                                          "smaller than requested bytes",
                                          "out of memory",
                                          "outofmemory",
                                          "cannot allocate memory",
                                          "alloc_failed",
                                          "pthread_create"};
    std::string text(message);
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    return std::any_of(std::begin(signs), std::end(signs),
                       [&](std::string_view sign) { return text.find(sign) != text.npos; });
}

}  // namespace var_edge_impl
