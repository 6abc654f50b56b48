// Structs that grow: what a program compiled with an older or a newer header passes.
#include <cstddef>
#include <functional>

#include "features.hpp"

namespace {

constexpr unsigned char FENCE = 0xA5;
constexpr std::size_t BEHIND = 64;  // bytes behind the struct that the library knows

// Memory for a struct of an older or a newer header, as a caller may have it: nothing in it is 0.
template <typename T>
struct Memory {
    Memory() { std::memset(static_cast<void*>(&known), FENCE, sizeof(T) + BEHIND); }

    bool untouched(std::size_t from) const {
        const auto* bytes = reinterpret_cast<const unsigned char*>(&known);
        return std::all_of(bytes + from, bytes + sizeof(T) + BEHIND, [](unsigned char byte) { return byte == FENCE; });
    }

    T known;
    unsigned char behind[BEHIND];
};

template <typename T>
using Call = std::function<var_edge_status(T*)>;

// No header has a struct of this size: smaller than in 0.1.0, cut within a field, or not set at all.
template <typename T>
void sizes_of_no_header(const std::string& name, std::size_t oldest, const Call<T>& call) {
    for (const std::size_t size :
         {std::size_t(0), std::size_t(3), oldest - alignof(T), oldest + 1, std::size_t(4104), std::size_t(1) << 40}) {
        Memory<T> memory;
        memory.known.struct_size = size;
        refused(name + " of " + std::to_string(size), call(&memory.known), VAR_EDGE_BAD_ARGUMENT,
                name + ".struct_size: expected");
    }
}

// A struct that the library reads. An older one gets defaults for the fields that it lacks; a newer one may set none
// that this library does not know.
template <typename T>
void read(const std::string& name, std::size_t oldest, void (*init)(T*, std::size_t), const Call<T>& call) {
    for (std::size_t size = oldest; size <= sizeof(T) + BEHIND; size += alignof(T)) {
        Memory<T> memory;
        init(&memory.known, size);
        expect(memory.untouched(size), name + ": defaults are written behind " + std::to_string(size));
        expect(memory.known.struct_size == size, name + ": size " + std::to_string(size));
        expect(call(&memory.known) == VAR_EDGE_OK, name + " of " + std::to_string(size));
        for (std::size_t at = sizeof(T); at < size; ++at) {  // a field that this library does not know
            unsigned char& byte = reinterpret_cast<unsigned char*>(&memory.known)[at];
            byte = 1;
            refused(name, call(&memory.known), VAR_EDGE_BAD_ARGUMENT, name + ": sets a field that VAR Edge");
            byte = 0;
        }
    }
    sizes_of_no_header(name, oldest, call);
}

// A struct that the library writes: an older one as far as it reaches, a newer one with 0 in the fields that this
// library does not know.
template <typename T>
void written(const std::string& name, std::size_t oldest, const Call<T>& call) {
    for (std::size_t size = oldest; size <= sizeof(T) + BEHIND; size += alignof(T)) {
        Memory<T> memory;
        memory.known.struct_size = size;
        expect(call(&memory.known) == VAR_EDGE_OK, name + " of " + std::to_string(size));
        expect(memory.known.struct_size == size && memory.untouched(size),
               name + ": written behind " + std::to_string(size));
        const auto* bytes = reinterpret_cast<const unsigned char*>(&memory.known);
        expect(
            std::all_of(bytes + std::min(size, sizeof(T)), bytes + size, [](unsigned char byte) { return byte == 0; }),
            name + ": its tail");
    }
    sizes_of_no_header(name, oldest, call);
}

// The sizes of 0.1.0 are those of the fields before the first one that was appended.
void structs(const std::string& directory) {
    Model model(directory, one_thread());
    const Pictures expected = model.generate({1}, Settings());
    std::vector<std::uint8_t> image(expected.images.size());
    const std::int32_t label = 1;
    read<var_edge_settings>(
        "settings", offsetof(var_edge_settings, seeds), var_edge_init_settings, [&](var_edge_settings* settings) {
            std::fill(image.begin(), image.end(), std::uint8_t(0));
            const var_edge_status status = var_edge_generate(model.get(), &label, 1, settings, image.data(), nullptr);
            expect(status != VAR_EDGE_OK || image == expected.images, "settings: another picture");
            return status;
        });
    read<var_edge_options>("options", offsetof(var_edge_options, device), var_edge_init_options,
                           [&](var_edge_options* options) {
                               var_edge_model* other = nullptr;
                               const var_edge_status status = var_edge_create(directory.c_str(), options, &other);
                               expect((other != nullptr) == (status == VAR_EDGE_OK), "options: a handle");
                               if (other) var_edge_free(other);  // of NULL too it would forget the error
                               return status;
                           });
    written<var_edge_info>("info", offsetof(var_edge_info, batches), [&](var_edge_info* info) {
        const var_edge_status status = var_edge_query(model.get(), info);
        expect(status != VAR_EDGE_OK ||
                   (info->tokens == model.info().tokens && std::strcmp(info->model, model.info().model) == 0),
               "info");
        return status;
    });
    const std::size_t first = sizeof(var_edge_memory_use);  // it has not grown yet
    written<var_edge_memory_use>("use", first, [&](var_edge_memory_use* use) {
        const var_edge_status status = var_edge_memory(directory.c_str(), 1, 0, use);
        expect(status != VAR_EDGE_OK || (use->weights > 0 && use->batch > 0 && use->noise > 0), "use");
        return status;
    });
}

}  // namespace

const Features STRUCTS = {{"structs", structs}};
