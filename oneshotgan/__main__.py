from oneshotgan.cli import main

main()
