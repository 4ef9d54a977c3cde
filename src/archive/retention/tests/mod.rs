mod doubt;
mod model;
mod scene;
mod stored_plans;

use super::*;
