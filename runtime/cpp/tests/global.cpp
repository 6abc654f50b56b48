// global: a model that is created before main, and freed after it.
#include <cstdlib>

#include <var_edge.hpp>

namespace {

var_edge::Model model(std::getenv("BUNDLE"));

}  // namespace

int main() {
    var_edge::Settings settings;
    settings.top_k = 0;
    return model.generate({1}, settings).images.empty();
}
