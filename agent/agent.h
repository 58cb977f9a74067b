/* What the C files of agent/ include. */
#ifndef RWAY_AGENT_H
#define RWAY_AGENT_H

#include "stack/stack.h"

#include "agent/api.h"

#endif
