// Where a backend keeps its tensors. Twin of runtime/backends/arrays.py.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

// A C-contiguous array in the host's or a GPU's memory, which it does not own.
struct Array {
    std::uint8_t* data = nullptr;
    Shape shape;
    Dtype dtype = Dtype::uint8;

    std::int64_t values() const;  // throws Error BAD_BUNDLE if there are more than memory holds
    std::size_t bytes() const { return std::size_t(values()) * item_size(dtype); }
    Array rows(std::int64_t begin, std::int64_t end) const;
    Array reshaped(Shape other) const { return {data, std::move(other), dtype}; }
};

// Makes arrays and moves their contents; owns the memory.
class Arrays {
  public:
    virtual ~Arrays() = default;
    virtual Array zeros(Shape shape, Dtype dtype) = 0;
    // Returns two blocks of `size` bytes: the host writes to the first, and after `upload` the stages read the second.
    virtual std::pair<std::uint8_t*, std::uint8_t*> staged(std::size_t size) = 0;
    virtual void upload(std::uint8_t* target, const void* host, std::size_t size) = 0;  // queued
    virtual void download(void* host, const Array& source) = 0;  // waits for the stages queued so far
    virtual void clear(const Array& array) = 0;                  // queued: sets it to 0
};

class HostArrays final : public Arrays {
  public:
    Array zeros(Shape shape, Dtype dtype) override;
    std::pair<std::uint8_t*, std::uint8_t*> staged(std::size_t size) override;
    void upload(std::uint8_t* target, const void* host, std::size_t size) override;
    void download(void* host, const Array& source) override;
    void clear(const Array& array) override;

  private:
    struct Free {
        void operator()(std::uint8_t* memory) const;
    };
    std::vector<std::unique_ptr<std::uint8_t[], Free>> memory_;

    std::uint8_t* allocate(std::size_t size);
};

// Makes shapes without memory, to compare them with the graphs and to count bytes before any are allocated.
class NoArrays final : public Arrays {
  public:
    Array zeros(Shape shape, Dtype dtype) override {
        Array array{nullptr, std::move(shape), dtype};
        bytes += array.bytes();
        return array;
    }
    std::pair<std::uint8_t*, std::uint8_t*> staged(std::size_t size) override {
        bytes += size;
        return {nullptr, nullptr};
    }
    void upload(std::uint8_t*, const void*, std::size_t) override {}
    void download(void*, const Array&) override {}
    void clear(const Array&) override {}

    std::uint64_t bytes = 0;  // that the arrays would take
};

}  // namespace var_edge_impl
