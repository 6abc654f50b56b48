#include "backends/arrays.hpp"

#include <algorithm>
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

Array HostArrays::empty(Shape shape, Dtype dtype) {
    Array array{nullptr, std::move(shape), dtype};
    const std::size_t rounded = (array.bytes() + 63) / 64 * 64 + 64;
    std::unique_ptr<std::uint8_t[], Free> memory(static_cast<std::uint8_t*>(std::aligned_alloc(64, rounded)));
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 0, rounded);
    array.data = memory.get();
    memory_.push_back(std::move(memory));
    return array;
}

Array HostArrays::constant(Shape shape, Dtype dtype, const void* values) {
    Array array = empty(std::move(shape), dtype);
    if (array.bytes()) std::memcpy(array.data, values, array.bytes());
    array.place = Place::constant;
    return array;
}

std::pair<std::uint8_t*, Array> HostArrays::shared(std::size_t size) {
    const Array block = empty({std::int64_t(size)}, Dtype::uint8);
    return {block.data, block};
}

void HostArrays::upload(std::uint8_t* target, const void* host, std::size_t size) {
    if (target != host && size) std::memcpy(target, host, size);
}

void HostArrays::fetch(void* host, const std::uint8_t* source, std::size_t size) {
    if (host != source && size) std::memcpy(host, source, size);
}

void HostArrays::copy_columns(const Array& target, const Array& source) {
    const std::size_t to = target.row_bytes(), from = source.row_bytes();
    for (std::int64_t row = 0; row < source.shape[0]; ++row) {
        std::memcpy(target.data + std::size_t(row) * to, source.data + std::size_t(row) * from, std::min(to, from));
    }
}

}  // namespace var_edge_impl
