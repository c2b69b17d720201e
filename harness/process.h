// Starts a process with chosen descriptors, and tells how it ended.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace assay {

// A descriptor of this process, which is closed with the object. Programs that are started do not
// inherit it.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { close(); }

  int number() const { return number_; }
  void close();
  int release();  // returns the number, which the caller must close

 private:
  int number_;
};

// What is written into `in` can be read from `out`. With a socket pair, each end does both.
struct Channel {
  Descriptor out, in;
};
// These functions throw std::system_error, whose text names the purpose.
Channel make_pipe(const std::string& purpose);
Channel make_socket_pair(const std::string& purpose);
// For the standard input of a process that runs what others wrote: ours may be a case, and that of
// a worker is the socket on which it answers.
Descriptor open_nothing(const std::string& purpose);

struct ProcessStart {
  std::string program;                   // a path
  std::vector<std::string> arguments{};  // the first is the name that the program sees as its own
  // The program finds the descriptor `ours` under the number `theirs`. Any numbers are allowed,
  // also equal ones. 0, 1 and 2 are inherited unchanged unless an entry replaces them.
  struct Inherited {
    int ours, theirs;
  };
  std::vector<Inherited> descriptors{};
  // NAME=VALUE, which replaces the value of NAME in this process.
  std::vector<std::string> environment{};
  // Whether the process is killed as soon as the thread that started it ends, for any reason.
  bool dies_with_thread = false;
  // Whether SIGTERM ends the process, which first ends what it has started (keeper.h). A process
  // that does not end so is killed after some seconds.
  bool ends_others = false;
};

class Process {
 public:
  // Throws std::system_error if the system cannot start it: the program is missing, or there are
  // too many descriptors.
  explicit Process(const ProcessStart& how);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();  // ends the process if it still runs

  pid_t id() const { return id_; }
  void kill();
  // These functions return a status of waitpid(). poll() returns nullopt while the process runs.
  std::optional<int> poll();
  int wait();
  // Waits for that many seconds, then ends the process. Returns false if it ended it.
  bool wait_for(double seconds);

 private:
  void look(int options);
  void end();
  bool ends_within(double seconds);

  const bool ends_others_;
  pid_t id_ = -1;
  std::optional<int> status_;
};

// "was killed by signal 11 (Segmentation fault)" or "exited with status 3".
std::string how_it_ended(int status);
// Whether SIGKILL ended it. The system sends that signal if memory is short. A process does not get
// it for what it does wrong.
bool was_killed(int status);

}  // namespace assay
