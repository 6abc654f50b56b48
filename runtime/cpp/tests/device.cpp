// device DIR: engines drawn with beside an application that uses CUDA itself. Prints what is wrong, and returns 0 if
// nothing is.
#include <cuda_runtime_api.h>

#include <atomic>
#include <iostream>
#include <thread>

#include <var_edge.hpp>

namespace {

using var_edge::Model;
using var_edge::Pictures;
using var_edge::Settings;

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::cout << what << "; last error: " << var_edge_last_error() << std::endl;
    ++failures;
}

bool same(const Pictures& a, const Pictures& b) { return a.images == b.images && a.tokens == b.tokens; }

// Another thread keeps the legacy stream busy, which spoils the recording of every stream that is ordered with it.
class Busy {
  public:
    Busy() {
        cudaMalloc(&memory_, sizeof(int));
        thread_ = std::thread([this] {
            for (int i = 0; !ended_; ++i) {
                if (cudaMemcpy(memory_, &i, sizeof i, cudaMemcpyHostToDevice) != cudaSuccess) refused_ = true;
                ++calls_;
            }
        });
    }
    ~Busy() {
        ended_ = true;
        thread_.join();
        cudaFree(memory_);
        expect(calls_ > 10 && !refused_, "a call of the application is refused while the library records");
    }

  private:
    void* memory_ = nullptr;
    std::atomic<bool> ended_{false}, refused_{false};
    std::atomic<int> calls_{0};
    std::thread thread_;
};

Pictures drawn_to_device(Model& model, const std::vector<std::int32_t>& labels) {
    const var_edge_info info = model.info();
    Pictures drawn{info.image_size, std::int32_t(labels.size()), {}, {}};
    drawn.images.resize(var_edge::picture_bytes(info, labels.size()));
    drawn.tokens.resize(labels.size() * std::size_t(info.tokens));
    void* images = nullptr;
    cudaMalloc(&images, drawn.images.size());
    Settings settings;
    settings.images_on_device = 1;
    expect(var_edge_generate(model.get(), labels.data(), drawn.count, &settings, static_cast<std::uint8_t*>(images),
                             drawn.tokens.data()) == VAR_EDGE_OK,
           "images on the device");
    cudaMemcpy(drawn.images.data(), images, drawn.images.size(), cudaMemcpyDeviceToHost);
    cudaFree(images);
    return drawn;
}

// Previews of every scale, of which the last is the picture; a stop after a scale, and what is drawn after it.
void listen(Model& model, const Pictures& expected) {
    std::vector<std::vector<std::uint8_t>> previews;
    const Pictures drawn = model.generate({1}, {}, [&](const var_edge::Scale& scale) {
        previews.push_back(scale.preview());
        return true;
    });
    expect(same(drawn, expected), "with previews it draws something else");
    expect(previews.size() == std::size_t(model.info().scales) && previews.back() == drawn.images &&
               previews.front() != drawn.images,
           "previews");
    Settings settings;
    settings.on_scale = [](var_edge_model*, const var_edge_scale* scale, void*) { return int(scale->index == 1); };
    std::vector<std::uint8_t> images(drawn.images.size());
    const std::int32_t label = 2;
    expect(var_edge_generate(model.get(), &label, 1, &settings, images.data(), nullptr) == VAR_EDGE_STOPPED, "a stop");
    expect(same(model.generate({1}), expected), "after a stop it draws something else");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    try {
        const std::vector<std::int32_t> labels = {1, 2, 3};
        cudaStream_t stream = nullptr;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);  // of device 0, as the library's
        cudaSetDevice(1);
        Pictures first;
        for (cudaStream_t given : {cudaStream_t(nullptr), stream, cudaStreamLegacy}) {
            var_edge::Options options;
            options.backend = VAR_EDGE_TENSORRT;
            options.cuda_stream = given;
            std::unique_ptr<Busy> busy;
            if (given != cudaStreamLegacy) busy = std::make_unique<Busy>();
            Model model(arguments[1], options);
            const Pictures drawn = model.generate(labels);
            if (first.images.empty()) first = drawn;
            expect(same(drawn, first), "another stream draws something else");
            expect(same(drawn_to_device(model, labels), drawn), "on the device are other images");
            listen(model, model.generate({1}));
        }
        cudaStreamDestroy(stream);
        int device = -1;
        cudaGetDevice(&device);
        expect(device == 1, "the application's device is no longer the current one");
    } catch (const std::exception& error) {
        std::cout << error.what() << std::endl;
        return 1;
    }
    return failures != 0;
}
