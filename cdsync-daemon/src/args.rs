//! The command line, as scripts rely on it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cdsync_agent::HINTS_MAX;
use cdsync_core::ids::Label;
use cdsync_core::job::Place;
use cdsync_master::MasterConfig;
use cdsync_transport::DialOver;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::text::duration;

/// Keeps directories on many servers identical.
///
/// Exit codes: 0 done, 1 condition not met, 2 usage, 3 master unreachable, 4 not permitted.
#[derive(Debug, Parser)]
#[command(name = "cdsync", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the whole thing at work on this machine.
    Demo(DemoArgs),
    /// Makes and runs a master.
    Master(MasterArgs),
    /// Joins and runs an agent.
    Agent(AgentArgs),
    /// Shows the master, its servers and its jobs.
    Status(StatusArgs),
    /// Lists and removes servers.
    Server(ServerArgs),
    /// Makes, watches and steers jobs.
    Job(JobArgs),
    /// Checks what an agent needs of this machine, and says what to do.
    Doctor(DoctorArgs),
}

/// `cdsync demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// The tree to keep identical; default: the project's own checkout, or a made one.
    #[arg(long, value_name = "DIR")]
    pub(crate) source: Option<PathBuf>,
    /// How many targets.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) targets: u16,
    /// Ends after the first copy and a few hundred edits, with the proof of equality.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MasterArgs {
    #[command(subcommand)]
    pub(crate) command: MasterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MasterCommand {
    /// Makes a master in a folder, with its certificate authority and the owner's token.
    Init(InitArgs),
    /// Runs the master of a folder until SIGINT or SIGTERM.
    Run {
        /// The master's folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
    /// Makes a one-time token that lets one server join: on stdout, the whole command on stderr.
    Token(TokenArgs),
    /// Lets a master that was restored from an older copy rule again.
    ///
    /// Agents obey only the newest orders. A master whose agents have later ones than it gave gives
    /// none, because jobs and servers may have changed since the copy was made: look at them first
    /// (`cdsync status`, `cdsync job list`).
    AcceptRestore(StatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where agents connect (UDP).
    #[arg(long, value_name = "ADDR", default_value_t = MasterConfig::LISTEN)]
    pub(crate) listen: SocketAddr,
    /// Where managers connect (TCP).
    #[arg(long, value_name = "ADDR", default_value_t = MasterConfig::HTTP)]
    pub(crate) http: SocketAddr,
    /// What agents dial, as HOST:PORT, where it is not the listening address.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Writes JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) manager: ManagerArgs,
    /// The name that the server gets.
    #[arg(long, value_name = "SERVER")]
    pub(crate) name: Label,
    /// Its place.
    #[arg(long, value_name = "REGION/GROUP")]
    pub(crate) group: String,
    /// How long the token is good.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    pub(crate) command: AgentCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Joins this machine to a master, once.
    Join(JoinArgs),
    /// Runs the agent of a folder until SIGINT or SIGTERM.
    Run {
        /// The agent's folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Over what it dials other agents; it always listens for both, on one port number.
        #[arg(long, value_name = "WHICH", value_enum, default_value_t = TransportArg::Auto)]
        transport: TransportArg,
        /// How many hints of changes may wait for each source, some 100 bytes each; beyond it the
        /// folders that they speak of are compared instead.
        #[arg(long, value_name = "N", default_value_t = HINTS_MAX)]
        hints_max: usize,
    },
}

/// `--transport` of `cdsync agent run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportArg {
    /// TCP on short ways (a LAN, a region), QUIC on long ones, and whichever passes.
    Auto,
    /// QUIC (UDP) alone.
    Quic,
    /// TCP alone: the fewest cycles per byte.
    Tcp,
}

impl From<TransportArg> for DialOver {
    fn from(arg: TransportArg) -> Self {
        match arg {
            TransportArg::Auto => Self::Auto,
            TransportArg::Quic => Self::Quic,
            TransportArg::Tcp => Self::Tcp,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The token from `cdsync master token`.
    #[arg(long)]
    pub(crate) token: String,
    /// A folder that jobs may use, with all below it; may be given again.
    #[arg(long = "root", value_name = "PATH", required = true)]
    pub(crate) roots: Vec<PathBuf>,
    /// Where other agents connect (UDP and TCP; one alone works too, only slower).
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([0, 0, 0, 0], 7410)))]
    pub(crate) listen: SocketAddr,
    /// What other agents dial, as HOST:PORT; default: the listening address, or for 0.0.0.0 this
    /// machine's address towards the master.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Writes JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a manager's command finds the master. Without any of it: `CDSYNC_MASTER` with
/// `CDSYNC_TOKEN_FILE`, or `CDSYNC_DATA`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ManagerArgs {
    /// A master's folder on this machine [env: CDSYNC_DATA].
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "master")]
    pub(crate) data: Option<PathBuf>,
    /// A master's API, such as https://127.0.0.1:7480 [env: CDSYNC_MASTER].
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) master: Option<String>,
    /// The file with the owner's token [env: CDSYNC_TOKEN_FILE].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Writes JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// `cdsync doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// An agent's folder: its roots, ports, certificate and master are checked too.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// A folder that shall be a root; may be given again.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Vec<PathBuf>,
    /// Writes JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) manager: ManagerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) manager: ManagerArgs,
    #[command(subcommand)]
    pub(crate) command: ServerCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Lists the servers.
    List,
    /// Removes a server for good; its files stay.
    Remove {
        /// Its name.
        name: Label,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) manager: ManagerArgs,
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Makes or changes the job that a file declares.
    Apply {
        /// The job file (TOML), `-` for stdin.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// What the targets hold already may be replaced; it goes to the job's trash.
        #[arg(long)]
        adopt: bool,
    },
    /// Makes a realtime job.
    Add {
        /// Its name.
        name: Label,
        /// The source, as SERVER:PATH.
        #[arg(long, value_name = "SERVER:PATH")]
        from: Place,
        /// A target, as SERVER:PATH, @REGION:PATH or @REGION/GROUP:PATH; may be given again.
        #[arg(long, value_name = "SERVER:PATH", required = true, num_args = 1..)]
        to: Vec<Place>,
    },
    /// Says that what the targets hold may be replaced.
    Accept {
        /// The job.
        name: Label,
    },
    /// Lists the jobs.
    List,
    /// Shows where a job stands.
    Status {
        /// The job.
        name: Label,
    },
    /// Compares the source anew and carries what differs; how a manual job runs.
    Run {
        /// The job.
        name: Label,
        /// Returns when every target holds it.
        #[arg(long)]
        wait: bool,
    },
    /// Returns when every target holds all that the source held when this began.
    Wait {
        /// The job.
        name: Label,
        /// How long to wait at most.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Stops moving; recording goes on.
    Pause {
        /// The job.
        name: Label,
    },
    /// Goes on after a pause or a halt.
    ///
    /// A job that halted because many files were deleted at once is only shown, with the first of
    /// them, unless one of the options says what is to be done about these deletes.
    Resume {
        /// The job.
        name: Label,
        /// Lets the deletes go: the files go to the trash of every target. As many as are shown and no
        /// more; what comes back until then at the source stays.
        #[arg(long, group = "decision")]
        accept: bool,
        /// Brings back at the targets, from their trash, what the source had already deleted there.
        /// Nothing is written at the source, and the job stays halted: copy the files back there,
        /// then say `--again`.
        #[arg(long, group = "decision")]
        restore: bool,
        /// Looks at the source again: deletes of files that are back are forgotten, and what is still
        /// gone is judged anew.
        #[arg(long, group = "decision")]
        again: bool,
    },
    /// Removes a job; the files stay.
    Remove {
        /// The job.
        name: Label,
    },
    /// Shows the changes of a job.
    Log {
        /// The job.
        name: Label,
        /// Goes on showing them as they come.
        #[arg(short, long)]
        follow: bool,
    },
    /// Shows what every server knows of a path, and why.
    Explain {
        /// The job.
        name: Label,
        /// The path below the job's root.
        path: OsString,
    },
}
