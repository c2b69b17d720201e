// Inside harness/cases/: cases that lie outside the factors of the suites, because bugs of real
// kernels were found there and nowhere else.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "harness/cases/factors.h"

namespace assay {

// Adds the case of a line to the cases of a suite. A candidate that declines it gets the same case
// with another dtype, with D = Dv in {64, 128, 32}, with other heads (none shared, one of keys, one
// of each) or, of a cache, without causality and with one row: the first of these that it does.
void add_line(std::vector<Case>& cases, const SuiteSeed& seed, const std::string& line);
// The first of the lines of which the candidate does one.
void add_first(std::vector<Case>& cases, const SuiteSeed& seed,
               std::initializer_list<std::string> lines);

// Pairs of what most kernels have (D = Dv in {64, 96, 128, 256}, groups of 5, 8, 16 and 71, lengths
// that are odd multiples of half a tile) and of what they get wrong (offsets with and without
// causality, masks of exactly 0 or -inf by blocks, scores far from 0, sinks, NaN and infinities
// that a row sees).
std::vector<Factor> regimes(Operation operation);

// NaN and infinities that some rows see, in Q, K and V. `fields` are those of a line; the case has
// two query heads and at least so many rows and keys.
void add_visible_specials(std::vector<Case>& cases, const SuiteSeed& seed,
                          const std::string& fields);

// Causal diagonals whose offsets have every residue modulo the tiles of 64 and 128 keys, and
// windows with offsets without causality.
void add_diagonals(std::vector<Case>& cases, const SuiteSeed& seed);

// Causal diagonals of gradients, whose offsets have every residue modulo tiles of up to 128 keys.
void add_diagonals_of_gradients(std::vector<Case>& cases, const SuiteSeed& seed);

// Negative scales, also with scores so far apart that a maximum that is taken before the scale
// leaves the range of binary32.
void add_negative_scales(std::vector<Case>& cases, const SuiteSeed& seed,
                         const std::string& operation);

// Many keys, rows, heads and batches, of which few rows are judged; no keys at all; masks beyond
// the key 65,536.
void add_extents(std::vector<Case>& cases, const SuiteSeed& seed);

}  // namespace assay
