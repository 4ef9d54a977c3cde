//! The program; `command_line` is where it begins.

fn main() -> std::process::ExitCode {
    walship::main()
}
