#include "backends/arrays.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "errors.hpp"

namespace var_edge_impl {

std::int64_t Array::values() const {
    std::int64_t count = 1;
    for (std::int64_t axis : shape) {
        if (__builtin_mul_overflow(count, axis, &count) || count > INT64_MAX / 8) {
            throw bad_bundle("a tensor would be larger than any memory; export the bundle again");
        }
    }
    return count;
}

Array Array::rows(std::int64_t begin, std::int64_t end) const {
    Array part = *this;
    part.shape[0] = end - begin;
    Array row = *this;
    row.shape[0] = 1;
    if (data) part.data += std::size_t(begin) * row.bytes();
    return part;
}

void HostArrays::Free::operator()(std::uint8_t* memory) const { std::free(memory); }

std::uint8_t* HostArrays::allocate(std::size_t size) {
    const std::size_t rounded = (size + 63) / 64 * 64 + 64;
    auto* memory = static_cast<std::uint8_t*>(std::aligned_alloc(64, rounded));
    if (!memory) throw std::bad_alloc();
    memory_.emplace_back(memory);
    std::memset(memory, 0, rounded);
    return memory;
}

Array HostArrays::zeros(Shape shape, Dtype dtype) {
    Array array{nullptr, std::move(shape), dtype};
    array.data = allocate(array.bytes());
    return array;
}

std::pair<std::uint8_t*, std::uint8_t*> HostArrays::staged(std::size_t size) {
    std::uint8_t* block = allocate(size);
    return {block, block};
}

void HostArrays::upload(std::uint8_t* target, const void* host, std::size_t size) {
    if (target != host && size) std::memcpy(target, host, size);
}

void HostArrays::download(void* host, const Array& source) {
    if (source.bytes()) std::memcpy(host, source.data, source.bytes());
}

void HostArrays::clear(const Array& array) {
    if (array.bytes()) std::memset(array.data, 0, array.bytes());
}

}  // namespace var_edge_impl
