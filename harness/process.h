// Starts a process with the descriptors that it is to have, and says how it ended.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace assay {

// A descriptor of this process, closed with the object. Programs that are started do not inherit
// it.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { close(); }

  int number() const { return number_; }
  void close();
  int release();  // the number, which the caller closes from now on

 private:
  int number_;
};

// What is written into `in` can be read from `out`. For a socket, both ends do both.
struct Channel {
  Descriptor out, in;
};
// Both throw std::system_error, with a text that names the purpose.
Channel make_pipe(const std::string& purpose);
Channel make_socket_pair(const std::string& purpose);

struct ProcessStart {
  std::string program;                   // a path
  std::vector<std::string> arguments{};  // the first is the name that the program sees itself under
  // The program finds `ours` under the number `theirs`. Any numbers will do, equal ones as well.
  // 0, 1 and 2 are inherited as they are unless an entry replaces them.
  struct Inherited {
    int ours, theirs;
  };
  std::vector<Inherited> descriptors{};
  std::vector<std::string> environment{};  // NAME=VALUE, in place of what this process has for NAME
  // Whether the process is killed as soon as the thread that started it ends, however that happens.
  bool dies_with_thread = false;
};

class Process {
 public:
  // Throws std::system_error where the machine fails: a missing program, too many descriptors.
  explicit Process(const ProcessStart& how);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();  // kills what still runs

  pid_t id() const { return id_; }
  void kill();
  // The following give a status as waitpid() does. poll: nullopt while the process runs.
  std::optional<int> poll();
  int wait();
  // Kills the process when the seconds are over. False if it had to.
  bool wait_for(double seconds);

 private:
  void look(int options);

  pid_t id_ = -1;
  std::optional<int> status_;
};

// "was killed by signal 11 (Segmentation fault)" or "exited with status 3".
std::string how_it_ended(int status);

}  // namespace assay
