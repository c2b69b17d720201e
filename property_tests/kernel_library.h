// The fixture of tests that build kernel libraries, as other people have them, and judge them
// through the command.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "property_tests/run_command.h"

namespace assay {

namespace fs = std::filesystem;

inline Ran check(const std::string& library,
                 const std::string& rest = "--case 'attention b=1 h=1 l=7x9 d=5/3'") {
  return run_line(std::string(ASSAY_COMMAND) + " check --no-shrink --kernel " + library + " " +
                  rest);
}

class Library : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-library-test-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "ids");
    setenv("ASSAY_TEST_IDS", (folder_ / "ids").c_str(), 1);
  }
  void TearDown() override {
    for (const pid_t process : left()) kill(process, SIGKILL);
    fs::remove_all(folder_);
  }

  // The processes of libraries that have left their id and still run.
  std::vector<pid_t> left() const {
    std::vector<pid_t> running;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_ / "ids")) {
      std::ifstream stat("/proc/" + entry.path().filename().string() + "/stat");
      std::string text;
      std::getline(stat, text);
      const bool ended = text.empty() || text.find(") Z ") != std::string::npos;
      if (!ended) running.push_back(std::stoi(entry.path().filename().string()));
    }
    return running;
  }
  std::size_t left_ids() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_ / "ids"), fs::directory_iterator()));
  }

  // Builds misbehaving_kernel.c with one mistake.
  std::string built(const std::string& mistake, const std::string& flags = "") {
    const fs::path library = folder_ / ("lib" + mistake + ".so");
    const Ran r = run_line(
        std::string(ASSAY_CC) +
        " -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR "/include -DMISTAKE=" + mistake +
        " " + flags + " -o " + library.string() +
        " " ASSAY_SOURCE_DIR "/property_tests/misbehaving_kernel.c -lm");
    EXPECT_EQ(r.status, 0) << r.output;
    return library;
  }
  // One of the small kernels of partial_*.c. The environment says what it does.
  std::string partial(const std::string& file) {
    std::string library = folder_ / ("lib" + file + ".so");
    const Ran made = run_line(std::string(ASSAY_CC) +
                              " -std=gnu11 -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR
                              "/include -o " +
                              library + " " ASSAY_SOURCE_DIR "/property_tests/" + file + ".c -lm");
    EXPECT_EQ(made.status, 0) << made.output;
    return library;
  }
  fs::path folder_;
};

// A variable of the environment, which the libraries read, for as long as this lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  Variable(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

// The relations of the first case of a run in JSON.
inline nlohmann::json relations_in(const std::string& file) {
  return nlohmann::json::parse(std::ifstream(file))["results"][0]["relations"];
}

}  // namespace assay
