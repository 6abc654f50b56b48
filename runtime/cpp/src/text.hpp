// Text from outside: whether it is UTF-8 and printable, and how it looks in a message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace var_edge_impl {

bool is_utf8(std::string_view text);

// Characters of valid UTF-8.
std::size_t characters(std::string_view text);

// Valid UTF-8 without characters that act on a terminal: none is UNPRINTABLE.
bool is_printable(std::string_view text);

// As one printable line of at most 300 bytes: a longer one loses its middle, because it says what at its beginning and
// what to do at its end.
std::string one_line(std::string_view text);

// At most 60 bytes of it, in quotes.
std::string excerpt(std::string_view text);

// As short as it reads back to the same number: "0.95", "1e-50", "nan".
std::string number(double value);

// Whether an engine's message says that memory, or the number of threads it needs, was not to be had: only words tell.
bool tells_out_of_memory(std::string_view message);

}  // namespace var_edge_impl
