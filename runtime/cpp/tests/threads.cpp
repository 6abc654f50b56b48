// threads DIR: two handles in two threads draw at once; each picture has to be the one drawn alone.
#include <iostream>
#include <thread>

#include <var_edge.hpp>

int main(int count, char** arguments) {
    if (count < 2) return 2;
    const auto draw = [&](std::uint64_t seed) {
        var_edge::Options options;
        options.threads = 1;
        var_edge::Model model(arguments[1], options);
        var_edge::Settings settings;
        settings.seed = seed;
        settings.top_k = 0;
        return model.generate({1, 2}, settings).tokens;
    };
    const std::vector<std::int32_t> alone[2] = {draw(1), draw(2)};
    std::vector<std::int32_t> together[2];
    std::thread threads[2];
    for (int i = 0; i < 2; ++i) {
        threads[i] = std::thread([&, i] {
            together[i] = draw(std::uint64_t(i + 1));
            // An error of one thread is no error of the other.
            if (i == 0 && var_edge_create("/nowhere", nullptr, nullptr) != VAR_EDGE_BAD_ARGUMENT) together[0].clear();
            if (i == 1 && *var_edge_last_error()) together[1].clear();
        });
    }
    for (std::thread& thread : threads) thread.join();
    const bool equal = alone[0] == together[0] && alone[1] == together[1] && alone[0] != alone[1];
    std::cout << (equal ? "equal" : "DIFFERENT") << std::endl;
    return !equal;
}
