// Files that are written whole, and texts of others that are printed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

#include "harness/files.h"
#include "harness/text.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class NewFiles : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const std::string& name) const { return folder_ / name; }
  static std::string text_of(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static unsigned permissions(const std::string& path) {
    struct stat facts{};
    EXPECT_EQ(stat(path.c_str(), &facts), 0) << path;
    return facts.st_mode & 07777;
  }
  std::ptrdiff_t files() const { return std::distance(fs::directory_iterator(folder_), {}); }
  const fs::path folder_ =
      fs::temp_directory_path() / ("assay-files-test-" + std::to_string(getpid()));
};

TEST_F(NewFiles, KeepThePermissionsOfWhatTheyReplace) {
  for (const mode_t mode : {0600, 0640, 0755}) {
    std::ofstream(file("old")) << "old";
    ASSERT_EQ(chmod(file("old").c_str(), mode), 0);
    write_file(file("old"), "new");
    EXPECT_EQ(permissions(file("old")), mode);
    EXPECT_EQ(text_of(file("old")), "new");
  }
  const mode_t mask = umask(027);
  write_file(file("fresh"), "new");
  umask(mask);
  EXPECT_EQ(permissions(file("fresh")), 0640u);
  EXPECT_EQ(files(), 2);
}

// Somebody who can write to the folder may guess the names of temporary files.
TEST_F(NewFiles, FollowNoLinkThatWasPlantedBesideThem) {
  std::ofstream(file("victim")) << "precious";
  fs::create_symlink("victim", file("out." + std::to_string(getpid()) + ".tmp"));
  write_file(file("out"), "new");
  EXPECT_EQ(text_of(file("victim")), "precious");
  EXPECT_EQ(text_of(file("out")), "new");
}

TEST_F(NewFiles, LeaveNothingBehindAfterAKill) {
  write_file(file("out"), "old");
  const pid_t child = fork();
  if (child == 0) {
    NewFile half(file("out"));
    half.write("half", 4);
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(text_of(file("out")), "old");
  EXPECT_EQ(files(), 1);
  {
    const NewFile never_committed(file("other"));
  }
  EXPECT_EQ(files(), 1);
}

TEST_F(NewFiles, FollowLinksAndReplaceWhatTheyPointTo) {
  fs::create_symlink("target", file("link"));  // the target is not there yet
  write_file(file("link"), "one");
  write_file(file("link"), "two");
  EXPECT_TRUE(fs::is_symlink(file("link")));
  EXPECT_EQ(text_of(file("target")), "two");
  EXPECT_EQ(files(), 2);
}

// Two writers of one file do not disturb one another; the file is that of the last.
TEST_F(NewFiles, OfOnePathAreWholeEach) {
  NewFile first(file("out")), second(file("out"));
  first.write("first", 5);
  second.write("second", 6);
  second.commit();
  first.commit();
  EXPECT_EQ(text_of(file("out")), "first");
  EXPECT_EQ(files(), 1);
}

TEST_F(NewFiles, NameThePathInEveryError) {
  for (const std::string& path : {file("none/x"), file(""), std::string(5000, 'x')}) {
    try {
      write_file(path, "x");
      ADD_FAILURE() << path;
    } catch (const std::system_error& e) {
      EXPECT_THAT(e.what(), HasSubstr("writing " + path)) << path;
    }
  }
}

TEST(Texts, ControlNoTerminal) {
  EXPECT_EQ(visible("plain text, Ünicode: 字"), "plain text, Ünicode: 字");
  EXPECT_EQ(visible("a\033[31mb\nc\td\r\x7f"), "a\\x1b[31mb\\nc\\td\\r\\x7f");
  // U+009B begins a sequence too; U+202E turns what follows around; what is no UTF-8 is told.
  EXPECT_EQ(visible("\xc2\x9b"
                    "1m \xe2\x80\xae \xff\xfe \xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xc3"),
            "\\x9b1m \\u202e \\xff\\xfe \\xc0\\x80 \\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80 \\xc3");
  EXPECT_EQ(visible(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(visible_lines("a\033\nb"), "a\\x1b\nb");
  EXPECT_EQ(places_of("a字Ü"), 3u);
}

// A shell gives back every text that was quoted for it.
TEST(Texts, AreOneWordForAShell) {
  EXPECT_EQ(shell_word("lib:./a-b.so"), "lib:./a-b.so");
  EXPECT_EQ(shell_word(""), "''");
  for (const std::string& text :
       {std::string("plain"), std::string("a b"), std::string("it's"), std::string("$(touch x)`y`"),
        std::string("\033[31m\n\\'\""), std::string("\xff Ü"), std::string("~ * ? # ! ; & |")}) {
    const std::string word = shell_word(text);
    EXPECT_EQ(visible(word), word);
    FILE* pipe = popen(("bash -c " + shell_quoted("printf %s " + word)).c_str(), "r");
    std::string read;
    for (int c; (c = fgetc(pipe)) != EOF;) read += static_cast<char>(c);
    EXPECT_EQ(pclose(pipe), 0);
    EXPECT_EQ(read, text) << word;
  }
}

TEST(Texts, CountsHaveTheirPlural) {
  EXPECT_EQ(counted(0, "case"), "0 cases");
  EXPECT_EQ(counted(1, "case"), "1 case");
  EXPECT_EQ(counted(2, "case"), "2 cases");
  EXPECT_EQ(counted(2, "series", "series"), "2 series");
}

}  // namespace
}  // namespace assay
