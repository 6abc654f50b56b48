// Where a backend keeps its tensors. Twin of runtime/backends/arrays.py.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

// Where an array lies, for an engine that copies arrays between host and device itself.
enum class Place {
    host,      // the host may write or read it between two runs
    constant,  // the host's memory as well, but never written again
    device     // the host neither reads nor writes it
};

// A C-contiguous array in the host's or a GPU's memory, which it does not own.
struct Array {
    std::uint8_t* data = nullptr;
    Shape shape;
    Dtype dtype = Dtype::uint8;
    Place place = Place::host;

    std::int64_t values() const;  // throws Error BAD_BUNDLE if there are more than memory holds
    std::size_t bytes() const { return std::size_t(values()) * item_size(dtype); }
    Array rows(std::int64_t begin, std::int64_t end) const;
    std::size_t row_bytes() const { return shape[0] ? bytes() / std::size_t(shape[0]) : 0; }
    Array reshaped(Shape other) const { return {data, std::move(other), dtype, place}; }
};

// Makes arrays and moves their contents; owns the memory.
class Arrays {
  public:
    virtual ~Arrays() = default;

    // Returns an array for stages to write. Until they have, its content is undefined.
    virtual Array empty(Shape shape, Dtype dtype) = 0;

    // Returns an array of these values, which nobody writes.
    virtual Array constant(Shape shape, Dtype dtype, const void* values) = 0;

    // Returns two blocks of `size` bytes, set to 0, one for the host and one for the stages: `upload` copies from the
    // first to the second, `fetch` in the other direction.
    virtual std::pair<std::uint8_t*, Array> shared(std::size_t size) = 0;

    // These are queued. `upload` is done when a stage that is queued later reads, `fetch` after `wait`.
    virtual void upload(std::uint8_t* target, const void* host, std::size_t size) = 0;
    virtual void fetch(void* target, const std::uint8_t* source, std::size_t size) = 0;

    // Queues a copy of the first columns of every row, (rows, columns, …) to (rows, other columns, …): as many as both
    // have. A backend may write others of the target too, with values that are as finite as the source's.
    virtual void copy_columns(const Array& target, const Array& source) = 0;

    virtual void wait() = 0;  // for everything that was queued

    // Copies an array after the stages queued so far, to memory of the host or of the arrays' device.
    void download(void* target, const Array& source) {
        fetch(target, source.data, source.bytes());
        wait();
    }
};

class HostArrays final : public Arrays {
  public:
    Array empty(Shape shape, Dtype dtype) override;
    Array constant(Shape shape, Dtype dtype, const void* values) override;
    std::pair<std::uint8_t*, Array> shared(std::size_t size) override;
    void upload(std::uint8_t* target, const void* host, std::size_t size) override;
    void fetch(void* host, const std::uint8_t* source, std::size_t size) override;
    void copy_columns(const Array& target, const Array& source) override;
    void wait() override {}  // a stage has run when the call that runs it returns

  private:
    struct Free {
        void operator()(std::uint8_t* memory) const;
    };
    std::vector<std::unique_ptr<std::uint8_t[], Free>> memory_;
};

// Makes shapes without memory, to compare them with the graphs and to count bytes before any are allocated.
class NoArrays final : public Arrays {
  public:
    Array empty(Shape shape, Dtype dtype) override {
        Array array{nullptr, std::move(shape), dtype};
        bytes += array.bytes();
        return array;
    }
    Array constant(Shape shape, Dtype dtype, const void*) override { return empty(std::move(shape), dtype); }
    std::pair<std::uint8_t*, Array> shared(std::size_t size) override {
        return {nullptr, empty({std::int64_t(size)}, Dtype::uint8)};
    }
    void upload(std::uint8_t*, const void*, std::size_t) override {}
    void fetch(void*, const std::uint8_t*, std::size_t) override {}
    void copy_columns(const Array&, const Array&) override {}
    void wait() override {}

    std::uint64_t bytes = 0;  // that the arrays would take
};

}  // namespace var_edge_impl
