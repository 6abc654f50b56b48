// Text from outside: whether it is UTF-8 and printable, and how it looks in a message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace var_edge_impl {

bool is_utf8(std::string_view text);

// Returns the number of characters in valid UTF-8.
std::size_t characters(std::string_view text);

// Whether the text is valid UTF-8 without characters that act on a terminal (UNPRINTABLE in text.cpp).
bool is_printable(std::string_view text);

// Returns the text as one printable line of at most 300 bytes. A longer line loses its middle: a message begins with
// what is wrong and ends with what to do.
std::string one_line(std::string_view text);

// Returns at most 60 bytes of the text, in quotes.
std::string excerpt(std::string_view text);

// Returns the shortest text that reads back as the same number: "0.95", "1e-50", "nan".
std::string number(double value);

// Whether an engine's message says that it got no memory or no threads. Engines have no status for that, only text.
bool tells_out_of_memory(std::string_view message);

}  // namespace var_edge_impl
