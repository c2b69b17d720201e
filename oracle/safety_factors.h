// Inside oracle/: the safety factors of all bounds, each with the reason why it is large enough.
//
// Functions that compute a bound carry a mark that names the document, the section, where there is
// one the part of it (its bold heading), and what is computed:
//   // bounds.md, 2: H_j
//   // bounds.md, 2, Sink: H of the sink
// property_tests/proof_test.cc holds these marks and the documents' sections together.
#pragma once

namespace assay::safety {

// ## Roundings. All of these assume roundoffs u of at most 2^-11.

// One rounding of a quantity that has been perturbed by a few roundings before: u (1 + k u) <= 1.01
// u for k u <= 0.01.
inline constexpr double one_rounding = 1.01;
// Two roundings, one after the other: (1 + u)^2 - 1 = 2 u + u^2, of a perturbed quantity: at most
// 2.01 u.
inline constexpr double two_roundings = 2.01;
// Both errors of an exp that is then multiplied: the ulp of its result is at most 2 u, and what it
// meets is perturbed.
inline constexpr double two_roundings_of_exp = 2.02;
// A relative error e of a constant that was rounded: the product errs by e (1 + u), and a second
// constant like it.
inline constexpr double folded_constant = 1.001;
// The rounding of fma(S, c, -m c): relative to natural units it is divided by a constant with an
// error of its own.
inline constexpr double fused_argument = 1.002;
// The product of two factors of one_rounding: a radius that is a sum of such terms, enlarged once
// more.
inline constexpr double one_rounding_twice = 1.02;
// Values outside their hull: the first-order sum of relative errors, of which every pair has a
// product below a tenth.
inline constexpr double hull = 1.1;

// The division (1 or 2 roundings), the correction for a sink and the last addition, relative to the
// largest value.
inline constexpr double roundings_of_quotient = 4;

// ## Margins, used as 1 + margin

// Of an exponent: log(1 + d) and products of two roundoffs. With d = 2 u exp_ulp <= 2^-20, |log(1 +
// d)| <= d (1 + d).
inline constexpr double second_order = 1e-6;
// The evaluation of a bound in fp64: a few hundred operations on terms of one sign lose at most
// 1,000 * 2^-53 = 1.2e-13.
inline constexpr double evaluation = 1e-9;
// A maximum of differences in fp64, and one call of expm1: fewer than 1,000 units of 2^-53.
inline constexpr double few_operations = 1e-12;
// Sums that may leave the range: weights exceed 1, and sums their exact value, by no more than this
// before they matter.
inline constexpr double accumulation = 1e-4;
// A Euclidean norm or a product of two, in fp64 from above: (D + 2) 2^-53 <= 2^-40 for D < 8,000.
inline constexpr double norm = 0x1p-40;

// ## Limits of the derivation

// Below it the denominator of the quotient is taken for 0, and the hull of V is all that is left.
inline constexpr double least_denominator = 0.1;
// e^h - 1 <= h (1 + h) for h <= 1; beyond, expm1 serves, whose argument is kept in the range of
// fp64.
inline constexpr double small_exponent = 1;
inline constexpr double largest_expm1_argument = 700;
// sech^2 is below 1e-259 there, and e^-2x still a normal number.
inline constexpr double largest_sech_argument = 300;
// exp(-745) is the least positive number of fp64; smaller arguments need not be formed.
inline constexpr double largest_gap_of_exp = 745;
// e^-104.5 is below half the least subnormal of fp32, so exp gives 0 (see Contract::exp_floor).
inline constexpr double gap_of_zero_weight = 104.5;
// Below 0.7, log l is that of an l between 1 and 2: a logarithm may err by an ulp of 1/2 there
// instead of one of its result.
inline constexpr double log_near_one = 0.7;
inline constexpr double log_unit_near_one = 0.5;
// Second-order terms of the ordered score, eps^2 N^2 a_j, are below the first-order ones where eps
// N^2 is below this.
inline constexpr double negligible_second_order = 0x1p-7;
// fp32 holds integers up to here exactly, so sums of so many quanta round nowhere.
inline constexpr double exact_quanta = 0x1p24;
// The coarsest accumulation that keeps such sums exact: fp32, truncating or to nearest.
inline constexpr double coarsest_exact_roundoff = 0x1p-23;

// ## The oracle's own arithmetic (fp64)

inline constexpr double unit64 = 0x1p-53;
// exp, log and tanh of the library are taken to err by up to 64 ulp: many times what any library is
// known to do.
inline constexpr double library_ulp = 64;
// 64 ulp are at most 128 units of 2^-53; two more for the addition of M.
inline constexpr double log_units = 2 * library_ulp + 2;
// p and v before they are added: the quotient's inverse, the product with it, that with 1 / (1 -
// p).
inline constexpr double roundings_of_term = 3;
// What rounds a value of V beside: keep_scale (two roundings), p (two), and as much again.
inline constexpr double units_of_weight = 8;
// The library's exp and the roundings beside it, against the contract's, term by term.
inline constexpr double library_ulp_and_one = library_ulp + 1;
// gamma(D + 2) of fp64 against eps sum |S_k|: 2 sum |S_k| >= sum |q k|, and one_rounding for the
// rest.
inline constexpr double dot_ratio = 2.1;
// Roundings that fp64 makes where the contract counts one (scale, softcap, biases): fewer than 15.
inline constexpr double other_ratio = 15;
// p is a quotient of two sums that each err by e^H: 4 H to first order; twice that covers the
// second.
inline constexpr double slack_per_exponent = 8;
// The relative error of a bound whose weights are right to the last bits: far more than its
// operations lose.
inline constexpr double least_slack = 0x1p-40;
// The same where K and V are products with a projection, themselves right to 2^-53 of their gauges.
inline constexpr double projected_slack = 0x1p-24;
// A row whose slack is not below this goes to balls; so does a contract with a roundoff close to
// fp64's.
inline constexpr double largest_slack = 0x1p-16;
inline constexpr double least_roundoff_of_fp64 = 0x1p-40;
// exp of fp64 underflows below 2^-1022 and keeps 2^-1074: a weight errs by less than this, even
// after the division.
inline constexpr double exp_underflow = 0x1p-1018;
// A product of fp64 that underflows errs by at most 2^-1075, and there are fewer than 2^15
// additions of such.
inline constexpr double product_underflow = 0x1p-1060;

// Bounds of stages are computed in fp64 like their values; both err by far less than this.
inline constexpr double stage = 0x1p-20;
// M - (M - s) of fp64: two roundings of the larger.
inline constexpr double gap_in_fp64 = 0x1p-52;
// exp and products of merges, whose terms underflow only at the edge of fp64: 2^-1074 and a few
// roundings.
inline constexpr double merge_underflow = 0x1p-1070;
// A part that lies farther below the maximum has no weight that any precision of ours would show.
inline constexpr double largest_distance_in_balls = 1e6;

// What is left of the exact tier: keys of weight below e^-104.5 on both sides of the quotient, and
// twice that for the bound.
inline constexpr double rest_of_both_sums = 2;
inline constexpr double rest_of_kernel = 4;
// fp64 and balls must meet: their own evaluation is allowed this much of the sum of their radii.
inline constexpr double meeting = 1e-9;

// ## Gradients (bounds_backward.md)

// How often the bound holds the oracle's own errors of LSE and D. Where they are all that is left
// (sums that cancel to nothing), verdicts stay sharp at the price of a bound that much above the
// oracle's error.
inline constexpr double own_errors_held = 0x1p10;
// 1 - p, its inverse and the product with it.
inline constexpr double roundings_of_keep = 3;
// kappa roundings of an argument that each err by u(1 + u): u (1 + 4 u) for each of up to four.
inline constexpr double second_order_units = 4;
// Blocks of rows and of keys that Eigen adds apart: their sums meet fewer than four more additions.
inline constexpr double additions_of_blocks = 4;
// dO.v in fp64: the products of dropout and of the difference, and additions between blocks: fewer
// than six.
inline constexpr double roundings_of_values = 6;
// exp of fp64 within 64 ulp, 128 units of 2^-53 (2^-46), and what the weight's other roundings are:
// twice that.
inline constexpr double library_exp = 0x1p-45;
// tanh of fp64 within 64 ulp, and the product and quotient of its argument, whose slope is at most
// 1: twice 2^-46.
inline constexpr double library_tanh = 0x1p-45;
// The argument s - L of fp64: two subtractions of numbers that were rounded once each, 4 units of
// 2^-53.
inline constexpr double argument_in_fp64 = 0x1p-51;
// The products of a sink's terms, D's sum and the additions of all rows: fewer than sixteen more
// than the rows.
inline constexpr double roundings_of_sink = 16;
// Of balls for rows that fp64 cannot weigh: more than twice the precision of fp64.
inline constexpr long bits_of_refined_rows = 128;
// exp of fp64 underflows below 2^-1022 and keeps 2^-1074; far above that, and far below any floor
// of a contract.
inline constexpr double exp_underflow_of_gradients = 0x1p-1000;
// Weights enter the bound of a gradient through two products and a quotient: 2 H to first order,
// twice that for the rest.
inline constexpr double slack_per_ratio = 4;
// e^80 is about 2^115: with it the weights' errors leave the range of fp32, and no row is
// determined.
inline constexpr double largest_exponent = 80;

// ## Products (bounds_product.md)

// A sum of two doubles times a double: what the lower one rounds is 2^-53 of 2^-52 of the higher
// one.
inline constexpr double two_doubles = 0x1p-100;
// S_k and T_t are taken in fp64: a sum of L terms errs by L 2^-53 of their moduli, and L of them
// enter a recurrence.
inline constexpr double partial_sums_in_fp64 = 0x1p-52;

// ## Sums in fp32 from above (bounds.md, 9)

inline constexpr double unit32 = 0x1p-24;
// A chain of n terms: 3.1 n u for its partial sums, n u for the sum of their moduli, and what n u
// of n u add.
inline constexpr double chain_loss = 4.2;
// 128 moduli are added in fp32 before fp64 takes over, and a few roundings at every chunk.
inline constexpr double moduli_loss = 132;
// The same of a centred sum, whose terms have three roundings each and a rounded weight.
inline constexpr double centred_loss = 140;
// O and v - O are rounded to fp32: two roundings of a number of the size of O.
inline constexpr double centre_loss = 2.1;
// No sum of fp32 leaves the range with a factor of 4 to spare.
inline constexpr double largest_single_sum = 0x1p126;
// Weights above it count as it: their row is vacuous anyhow.
inline constexpr double largest_single_weight = 1e30;
// A product of fp32 that underflows errs by at most 2^-149; twice that, and four times where two
// factors may.
inline constexpr double single_underflow = 0x1p-148;
inline constexpr double single_underflow_of_centred = 0x1p-147;
// More than this is not worth taking in fp32.
inline constexpr double largest_single_loss = 0x1p-6;

}  // namespace assay::safety
