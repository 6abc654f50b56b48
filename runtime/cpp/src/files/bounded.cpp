#include "files/bounded.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

Error problem(const std::string& path, const char* what, int reason) {
    const std::string message = path + ": cannot be " + what + ": " + std::strerror(reason);
    return reason == ENOMEM ? out_of_memory(message) : bad_bundle(message);
}

std::int64_t nanoseconds(const timespec& time) { return std::int64_t(time.tv_sec) * 1'000'000'000 + time.tv_nsec; }

void check_text(const std::string& text, const std::string& where) {
    if (!is_utf8(text)) throw bad_bundle(where + ": not UTF-8");
    if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) {
        throw bad_bundle(where + ": expected UTF-8 text without a byte order mark");
    }
    if (text.find('\0') != text.npos) throw bad_bundle(where + ": expected UTF-8 text without NUL");
}

// Builds a document value by value, and stops at the first that is not allowed.
class Builder final : public nlohmann::json_sax<json> {
  public:
    json root;
    std::string fault;

    bool null() override { return place(nullptr); }
    bool boolean(bool value) override { return place(value); }
    bool number_integer(std::int64_t value) override { return place(value); }
    bool number_unsigned(std::uint64_t value) override { return value <= INT64_MAX ? place(value) : refuse(LARGE); }
    bool number_float(double value, const std::string& text) override {
        return text.find_first_of(".eE") == text.npos ? refuse(LARGE) : place(value);
    }
    bool string(std::string& value) override { return place(std::move(value)); }
    bool binary(json::binary_t&) override { return refuse("not valid JSON"); }
    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(std::string& name) override {
        if (open_.back()->contains(name)) return refuse("duplicate key " + excerpt(name));
        key_ = std::move(name);
        return true;
    }
    bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
        return refuse("not valid JSON at byte " + std::to_string(position));
    }

  private:
    static constexpr const char* LARGE = "an integer of more than 64 bits";

    bool refuse(const std::string& reason) {
        if (fault.empty()) fault = reason;
        return false;
    }

    bool place(json value) {
        if (open_.empty()) {
            here_ = &root;
        } else if (open_.back()->is_object()) {
            here_ = &(*open_.back())[key_];
        } else {
            here_ = &open_.back()->emplace_back();
        }
        *here_ = std::move(value);
        return true;
    }

    bool open(json value) {
        if (open_.size() == limits::JSON_DEPTH) {
            return refuse("nested more than " + std::to_string(limits::JSON_DEPTH) + " deep");
        }
        place(std::move(value));
        open_.push_back(here_);
        return true;
    }

    bool close() {
        open_.pop_back();
        return true;
    }

    std::vector<json*> open_;  // objects and lists around what comes next, from the root in
    std::string key_;          // of what comes next
    json* here_ = nullptr;     // what was placed last
};

}  // namespace

InputFile::InputFile(const fs::path& path, std::int64_t most) : path_(path.string()) {
    // Opened without waiting, because a FIFO without a writer would wait for ever.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) throw problem(path_, "opened", errno);
    struct stat state{};
    const bool known = ::fstat(descriptor_, &state) == 0;
    size_ = state.st_size;
    modified_ = nanoseconds(state.st_mtim);
    if (known && S_ISREG(state.st_mode) && size_ <= most) return;
    ::close(descriptor_);
    if (!known || !S_ISREG(state.st_mode)) throw bad_bundle(path_ + ": expected a regular file");
    throw bad_bundle(path_ + ": expected at most " + std::to_string(most) + " bytes, found " + std::to_string(size_));
}

InputFile::~InputFile() { ::close(descriptor_); }

std::size_t InputFile::read_some(void* target, std::size_t size, std::int64_t offset) const {
    std::size_t done = 0;
    while (done < size) {
        const ssize_t count =
            ::pread(descriptor_, static_cast<char*>(target) + done, size - done, off_t(offset) + off_t(done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw problem(path_, "read", errno);
        if (!count) break;
        done += std::size_t(count);
    }
    return done;
}

void InputFile::read(void* target, std::size_t size, std::int64_t offset) const {
    if (read_some(target, size, offset) != size)
        throw bad_bundle(path_ + ": became shorter while it was read; copy it again");
}

void InputFile::check_unchanged() const {
    struct stat state{};
    if (::fstat(descriptor_, &state) == 0 && state.st_size == size_ && nanoseconds(state.st_mtim) == modified_) return;
    throw bad_bundle(path_ +
                     ": changed while in use; replace a file by renaming a new one onto it, then create a new handle");
}

std::string read_bytes(const fs::path& path, std::int64_t most) {
    const InputFile file(path, most);
    std::string data(std::size_t(file.size()), '\0');
    file.read(data.data(), data.size(), 0);
    return data;
}

std::string read_text(const fs::path& path, std::int64_t most) {
    std::string text = read_bytes(path, most);
    check_text(text, path.string());
    return text;
}

json parse_json(const std::string& text, const std::string& where) {
    for (const auto& [mark, most] : limits::JSON_COUNTS) {
        const auto found = std::count(text.begin(), text.end(), mark);
        if (found > most) {
            throw bad_bundle(where + ": expected at most " + std::to_string(most) + " '" + mark +
                             "' characters, found " + std::to_string(found));
        }
    }
    check_text(text, where);
    Builder builder;
    if (!json::sax_parse(text, &builder)) throw bad_bundle(where + ": cannot be read: " + builder.fault);
    return std::move(builder.root);
}

}  // namespace var_edge_impl
