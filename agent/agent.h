/* What the C files of agent/ include. */
#ifndef RWAY_AGENT_H
#define RWAY_AGENT_H

#include "engine/job.h"

#pragma GCC visibility push(default)
#include "agent/api.h"
#pragma GCC visibility pop

#endif
