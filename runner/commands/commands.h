// One function per verb of the command line: it adds its subcommand with options and a callback that does the work.
// A verb is one file in this folder and one line in main.cpp.
#pragma once

namespace CLI {
class App;
}

namespace lacuna {}  // add_*_command functions are declared here, in the order of main.cpp
